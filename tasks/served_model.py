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
    """Completes prompts, or names their labels where it was fine-tuned to do so.

    `model_input` has a column `prompt`; the answer is a column `text`.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights and tokenizer on the CPU."""
        from lm_core.downstream.labeller import Labeller, has_labels
        from lm_core.model.conversation import Speaker

        folder = Path(context.artifacts["checkpoint"])
        self.labeller = Labeller(folder) if has_labels(folder) else None
        self.speaker = Speaker(folder, device="cpu")

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Complete each prompt, or name its label.

        Args:
            context: not used beyond `load_context`.
            model_input: rows with a column `prompt`.
            params: max_new_tokens, temperature, top_k (0: off), top_p, min_p, repetition_penalty, seed; none of them
                counts for labels.
        """
        if self.labeller is not None:
            named = self.labeller([str(prompt) for prompt in model_input["prompt"]])
            return pd.DataFrame({"text": [label for label, _ in named]})
        given = params or {}
        texts = self.speaker.complete_all(
            [str(prompt) for prompt in model_input["prompt"]],
            max_new_tokens=int(given.get("max_new_tokens", 64)),
            temperature=float(given.get("temperature", 0.0)),
            top_k=int(given.get("top_k", 0)) or None,
            top_p=float(given.get("top_p", 1.0)),
            min_p=float(given.get("min_p", 0.0)),
            repetition_penalty=float(given.get("repetition_penalty", 1.0)),
            seed=int(given.get("seed", 0)),
        )
        return pd.DataFrame({"text": texts})


mlflow.models.set_model(LanguageModel())
