"""The encoder as one ONNX graph, from pixels to unit vectors: how a CPU embeds a catalogue."""

import logging
import os
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn

from model.courier.data.images import Pixels
from model.courier.network.encoder import LoadedEncoder, embed_images

LEAST_COSINE: Final = 1 - 1e-4  # between the two roads' vectors of one picture
CHECKED: Final = 8  # pictures that both roads embed before one is believed
PIXELS, VECTORS = "pixels", "vectors"


class NotTheSame(RuntimeError):
    """The exported graph gives other vectors than the encoder it was made from."""


class _FromPixels(nn.Module):
    """The encoder with its normalisation in front: (N, S, S, 3) uint8 -> (N, width)."""

    def __init__(self, loaded: LoadedEncoder) -> None:
        super().__init__()
        self.encoder, self.preprocessing = loaded.module, loaded.preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).to(torch.float32)
        return self.encoder((images - self.preprocessing.mean) / self.preprocessing.scale)  # type: ignore[no-any-return]


class ExportedEncoder:
    """Embeds as `embed_images` does, by ONNX Runtime on all cores: about twice as fast on a CPU (docs/LOG.md)."""

    def __init__(self, loaded: LoadedEncoder) -> None:
        """Export the encoder, which lies on the CPU, and check the graph. Raises NotTheSame."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "encoder.onnx"
            _export(loaded, path)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = os.cpu_count() or 1
            # Between two batches the threads would wait busily, on cores that decode the next one meanwhile.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._check(loaded)

    def embed(self, images: Pixels) -> npt.NDArray[np.float32]:
        """images: (N, S, S, 3) uint8 -> (N, width) float32, rows of unit length."""
        vectors: npt.NDArray[np.float32] = self.session.run([VECTORS], {PIXELS: images})[0]
        return vectors

    def _check(self, loaded: LoadedEncoder) -> None:
        size = loaded.preprocessing.size
        drawn = np.random.default_rng(0).integers(0, 256, (CHECKED, size, size, 3), np.uint8)
        cosine = (self.embed(drawn) * embed_images(loaded, drawn)).sum(1)
        if not cosine.min() >= LEAST_COSINE:
            raise NotTheSame(
                f"ONNX Runtime's vectors of space {loaded.space_id} have a cosine of {cosine.min():.6f} with torch's, "
                f"less than {LEAST_COSINE}: report the encoder's config, it is a fault of the export"
            )


def _export(loaded: LoadedEncoder, path: Path) -> None:
    size = loaded.preprocessing.size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    # It would say that torchvision, which nothing here needs, is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the exporter about itself
        torch.onnx.export(
            _FromPixels(loaded).eval(),
            (example,),
            path,
            input_names=[PIXELS],
            output_names=[VECTORS],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            external_data=False,
            verbose=False,
        )
