"""Chooses the format to write a checkpoint in: the one it came in, or another that was asked for."""

from __future__ import annotations

from typing import Literal, TypeAlias

from migrate_ckpt.formats.container import Container
from migrate_ckpt.formats.pieces import Pieces
from migrate_ckpt.formats.safetensors import Safetensors
from migrate_ckpt.formats.safetensors_header import METADATA
from migrate_ckpt.formats.safetensors_metadata import plain_text, state_dict_metadata
from migrate_ckpt.formats.torch_legacy import TorchLegacy
from migrate_ckpt.migration import CkptType

Format: TypeAlias = Literal["torch", "safetensors"]


def written_format(container: Container, asked: Format | None) -> Format:
    """The format that a file becomes. Torch's old stream is not written any more: it becomes torch's zip."""
    return asked or ("safetensors" if isinstance(container, Safetensors) else "torch")


def lay_out_as(
    ckpt: CkptType, container: Container, protocol: int, format: Format | None
) -> tuple[Pieces, Format, tuple[str, ...]]:
    """The pieces of the file of a checkpoint, its format, and a sentence for each thing that is not in it any more.

    `container` is what the checkpoint was read from, and `protocol` that of its pickle.

    Raises:
        UnwritableCheckpoint: The checkpoint holds what cannot be written in this format.
    """
    # Both writers load torch, which those who only look into a file need not wait for.
    if written_format(container, format) == "safetensors":
        from migrate_ckpt.formats.safetensors_writer import lay_out_safetensors

        pieces, left_out = lay_out_safetensors(ckpt, container)
        return pieces, "safetensors", left_out
    from migrate_ckpt.formats.pickle_writer import write_pickle
    from migrate_ckpt.formats.tensor_writer import TensorWriter
    from migrate_ckpt.formats.torch_zip import lay_out

    writer = TensorWriter(container)
    pieces = lay_out(write_pickle(ckpt, writer, protocol), writer)
    return pieces, "torch", _not_in_the_zip(ckpt, container)


def _not_in_the_zip(ckpt: CkptType, container: Container) -> tuple[str, ...]:
    if isinstance(container, TorchLegacy):
        return _not_in_the_zip_of_a_stream(container)
    if isinstance(container, Safetensors) and METADATA not in state_dict_metadata(ckpt):
        text = plain_text(container.header.metadata)
        if text and text != {"format": "pt"}:
            return (
                f"The text of the header is not in the new file: {', '.join(map(repr, text))}.",
            )
    return ()


def _not_in_the_zip_of_a_stream(container: TorchLegacy) -> tuple[str, ...]:
    said = "The file was the stream that torch wrote before 1.6; the new one is the zip that it writes since."
    classes = container.sources_of
    if not classes:
        return (said,)
    return (said, f"The source code of these classes is not in the new file: {', '.join(classes)}.")
