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
    """Completes prompts; names labels, answers about pictures or by spans, where it was fine-tuned to do so.

    `model_input` has a column `prompt`, a visual model's also `picture` (the bytes of a file); the answer is a column
    `text`.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights and tokenizer on the device that MILLRACE_DEVICE names, by default a GPU when there is one.

        A model that sees answers on the CPU.
        """
        from lm_core.answering import answerer_of
        from lm_core.model.conversation import Speaker
        from lm_core.runtime import Runtime

        folder, device = Path(context.artifacts["checkpoint"]), Runtime().device
        self.answer = answerer_of(folder, device=device)
        self.speaker = None if self.answer else Speaker(folder, device=device)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Complete each prompt, name its label, or answer it by its text or about its picture.

        Args:
            context: not used beyond `load_context`.
            model_input: rows with a column `prompt`, and `picture` for a visual model.
            params: max_new_tokens, temperature, top_k (0: off), top_p, min_p, repetition_penalty, seed; none of them
                counts for labels and pictures, and only the first for spans.
        """
        given, prompts = params or {}, [str(prompt) for prompt in model_input["prompt"]]
        max_new_tokens = int(given.get("max_new_tokens", 64))
        if self.answer is not None:
            pictures = [bytes(picture) for picture in model_input.get("picture", ())]
            return pd.DataFrame({"text": [said.text for said in self.answer(prompts, pictures, max_new_tokens)]})
        assert self.speaker is not None
        texts = self.speaker.complete_all(
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=float(given.get("temperature", 0.0)),
            top_k=int(given.get("top_k", 0)) or None,
            top_p=float(given.get("top_p", 1.0)),
            min_p=float(given.get("min_p", 0.0)),
            repetition_penalty=float(given.get("repetition_penalty", 1.0)),
            seed=int(given.get("seed", 0)),
        )
        return pd.DataFrame({"text": texts})


mlflow.models.set_model(LanguageModel())
