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
        from lm_core.downstream.labeller import Labeller, has_labels
        from lm_core.evaluation.spans import SpanAnswerer, answers_by_spans
        from lm_core.model.conversation import Speaker
        from lm_core.runtime import Runtime
        from lm_core.vision.answerer import PictureAnswerer, has_eyes

        folder, device = Path(context.artifacts["checkpoint"]), Runtime().device
        self.labeller = Labeller(folder, device=device) if has_labels(folder) else None
        self.answerer = PictureAnswerer(folder) if has_eyes(folder) else None
        self.finder = SpanAnswerer(folder, device=device) if answers_by_spans(folder) else None
        others = self.labeller or self.answerer or self.finder
        self.speaker = None if others else Speaker(folder, device=device)

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
        if self.labeller is not None:
            named = self.labeller([str(prompt) for prompt in model_input["prompt"]])
            return pd.DataFrame({"text": [label for label, _ in named]})
        if self.answerer is not None:
            asked = [str(prompt) for prompt in model_input["prompt"]]
            return pd.DataFrame({"text": self.answerer([bytes(p) for p in model_input["picture"]], asked)})
        given = params or {}
        if self.finder is not None:
            asked = [str(prompt) for prompt in model_input["prompt"]]
            return pd.DataFrame({"text": self.finder(asked, int(given.get("max_new_tokens", 64)))})
        assert self.speaker is not None
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
