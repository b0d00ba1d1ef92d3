"""The registered model as MLflow serves it: models-from-code, safetensors and tokenizer.json, no pickle.

MLflow runs this file by itself when it loads the model, with `lm_core` beside it (logged as code): it must import
nothing of `tasks` or `flows`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class LanguageModel(PythonModel):
    """Completes prompts. `model_input` has a column `prompt`; the answer is a column `text`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights and tokenizer on the CPU."""
        from lm_core.model.weights import load_model
        from lm_core.tokenizer import load_tokenizer

        folder = Path(context.artifacts["checkpoint"])
        self.model = load_model(folder, device="cpu")
        self.tokenizer = load_tokenizer(folder / "tokenizer.json")

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Complete each prompt.

        Args:
            context: not used beyond `load_context`.
            model_input: rows with a column `prompt`.
            params: max_new_tokens, temperature, seed.
        """
        from lm_core.model.generate import generate

        settings = params or {}
        prompts = [
            self.tokenizer.encode(str(prompt)) or [self.tokenizer.end_of_text] for prompt in model_input["prompt"]
        ]
        answers = generate(
            self.model,
            prompts,
            max_new_tokens=int(settings.get("max_new_tokens", 64)),
            temperature=float(settings.get("temperature", 0.0)),
            seed=int(settings.get("seed", 0)),
            stop_ids=(self.tokenizer.end_of_text, self.tokenizer.turn_end),
        )
        return pd.DataFrame({"text": [self.tokenizer.decode(answer) for answer in answers]})


mlflow.models.set_model(LanguageModel())
