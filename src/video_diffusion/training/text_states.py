"""States of texts that a frozen encoder has read, on the disk: later runs find them again."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from video_diffusion.data.video_io import atomic_path

FORMAT = 1  # raised when an encoder is read in another way
OF_NO_MATTER = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")  # of a config
NAME = 40  # hexadecimal digits of a digest that serve as a name


def encoder_digest(encoder: PreTrainedModel) -> str:
    """What an encoder computes: the SHA-256 of its class, its config and its weights, wherever they come from."""
    config = {key: value for key, value in encoder.config.to_dict().items() if key not in OF_NO_MATTER}
    head = [FORMAT, type(encoder).__name__, config]
    found = hashlib.sha256(json.dumps(head, sort_keys=True, default=str).encode())
    for name, value in sorted(encoder.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def text_keys(input_ids: Tensor, attention_mask: Tensor) -> list[str]:
    """A name for each text as its tokenizer gives it to the encoder, `[B, L]`: two tokenizers may give the same."""
    rows = torch.stack([input_ids, attention_mask], 1).long().cpu().numpy()
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in rows]


class TextStates:
    """Token states `[L, D]` by `text_keys`, in safetensors files; rows of zeros at the end are not kept.

    Files are written whole or not at all, so that runs may share a folder. One that is damaged is not used, and what
    was in it is computed again.

    Args:
        folder: of one encoder; is made where there is none.
        length: L.

    Raises:
        ValueError: if it cannot be written to.
    """

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.length = folder, length
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"`text_cache_dir` is {folder.parent}, expected a folder to write to: {error}") from error
        self.files: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(str(file), framework="pt") as states:
                    self.files |= dict.fromkeys(states.keys(), file)
            except (SafetensorError, OSError):
                continue

    def __contains__(self, key: str) -> bool:
        return key in self.files

    def load(self, keys: Sequence[str]) -> list[Tensor]:
        """The states of these texts, each `[L, D]`."""
        found: dict[str, Tensor] = {}
        for file in {self.files[key] for key in keys}:
            with safe_open(str(file), framework="pt") as states:
                found |= {key: states.get_tensor(key) for key in keys if self.files[key] == file}
        return [torch.nn.functional.pad(found[key], (0, 0, 0, self.length - len(found[key]))) for key in keys]

    def save(self, states: Mapping[str, Tensor]) -> None:
        """Keeps the states of some texts, each `[L, D]`, in one file.

        Raises:
            ValueError: if the disk has too little room.
        """
        kept = {key: _trimmed(value.detach().cpu()) for key, value in states.items()}
        needed, free = sum(value.nbytes for value in kept.values()), shutil.disk_usage(self.folder).free
        if needed > free:
            raise ValueError(
                f"`text_cache` needs {needed / 2**20:.0f} MiB more, and the disk of {self.folder} has "
                f"{free / 2**20:.0f} MiB free: expected more room, another `text_cache_dir` or `text_cache` memory."
            )
        name = hashlib.sha256(" ".join(sorted(kept)).encode()).hexdigest()[:NAME]
        file = self.folder / f"{name}.safetensors"
        with atomic_path(file) as draft:
            save_file(kept, str(draft))
        self.files |= dict.fromkeys(kept, file)


def _trimmed(states: Tensor) -> Tensor:
    """Without the rows of zeros at the end: T5's padding."""
    rows = states.any(1).nonzero()
    return states[: int(rows[-1]) + 1 if len(rows) else 0].clone()
