"""From a certificate and its base to the network that was certified, without data and without a checkpoint."""

import dataclasses
import functools
from pathlib import Path

import torch
from torch import Tensor

from sublora import config
from sublora.data.dataset import TokenDataset, dataset_folder
from sublora.data.dataset_files import META_FILE
from sublora.data.tokenizers import OF_THE_BASE, Tokenizer, load_tokenizer, pretrained_tokenizer
from sublora.models.protocol import LanguageModel, Network
from sublora.runs.base_files import NAME_IT, base_weights_for_reader, own_base_weights
from sublora.runs.build import adaptable
from sublora.runs.message import Message, read_message
from sublora.runs.networks import AnyBase, random_base, read_base
from sublora.subspace.hashes import SubspaceHashes
from sublora.system.errors import UserError
from sublora.system.names import BASE_FOLDER, CERTIFICATE_NAME


@dataclasses.dataclass(frozen=True)
class CertificateFiles:
    """A certificate, and where its base is."""

    certificate: Path
    base: Path | None = None
    """base.safetensors; None: it is looked for."""
    root: Path | None = None
    """The folder that holds results/base/; None: it is looked for."""
    pretrained: Path | None = None
    """The folder of a pretrained base, in the format of Hugging Face. Only its reader names it: the path in the
    certificate's settings is the prover's, and nothing is read there."""

    @classmethod
    def of(cls, path: Path, **named: Path | None) -> "CertificateFiles":
        """Name a certificate by its run's folder, or by its own path, and where its base is."""
        return cls(path / CERTIFICATE_NAME if path.is_dir() else path, **named)

    def base_weights(self) -> Path:
        """base.safetensors: as named, below `root`, beside the certificate, else in results/base/ of a folder above.

        UserError if it is at none of these places.
        """
        if self.base is not None:
            return self.base
        if self.root is not None:
            return own_base_weights(self.root)
        return base_weights_for_reader(self.certificate)

    def root_of_base(self) -> Path:
        """`root`, else the folder below which a base that is not random lies in results/base/, else the working one.

        UserError if there is no such base.
        """
        if self.root is not None:
            return self.root
        folder = self.base_weights().absolute().parent
        root = folder.parent.parent
        return root if folder == root / BASE_FOLDER else Path.cwd()


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedRun:
    """What a certificate says, as a network."""

    files: CertificateFiles
    message: Message
    base: AnyBase
    network: Network
    theta_D: Tensor
    """The trained parameters as decoded: LoRA matrices, or all weights."""
    device: torch.device

    @functools.cached_property
    def model(self) -> LanguageModel:
        """The network that was scored, before its probabilities are smoothed."""
        return self.network.at(self.theta_D)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the documents: of a pretrained base, from the folder that the reader named or from the data.

        UserError if neither is here, or if the tokenizer has another vocabulary than the network.
        """
        tokenizer, known = self._named_tokenizer(), self.message.header.vocab_size
        if tokenizer.vocab_size != known:
            raise UserError(
                f"{self.files.certificate}: its network knows {known} tokens, its tokenizer has "
                f"{tokenizer.vocab_size}; the two do not belong together"
            )
        return tokenizer

    def _named_tokenizer(self) -> Tokenizer:
        """Return the tokenizer that the settings name."""
        settings, vocab_size = self.message.settings, self.message.header.vocab_size
        if settings.data.tokenizer != OF_THE_BASE:
            return load_tokenizer(settings.data.tokenizer)
        if self.files.pretrained is not None:
            tokenizer = pretrained_tokenizer(self.files.pretrained)
            if tokenizer.vocab_size != vocab_size:
                raise UserError(
                    f"--pretrained {self.files.pretrained}: its tokenizer has {tokenizer.vocab_size} tokens, "
                    f"{self.files.certificate} was made with {vocab_size}; name the folder of the certificate's base"
                )
            return tokenizer
        data = dataset_folder(self.files.root_of_base(), settings.data)
        if (data / META_FILE).exists():
            return TokenDataset.open_folder(data, settings.data).load_tokenizer()
        raise UserError(
            f"{self.files.certificate}: its tokenizer is that of the base, and there is no {data} here; name the "
            "folder of the pretrained base with --pretrained, or with --root the folder that holds data/ and "
            "results/base/"
        )


def decode_certificate(files: CertificateFiles, device: torch.device) -> DecodedRun:
    """Return the decoded network, computing in float32.

    UserError if a file is missing or damaged, or if base, LoRA initialization or projection are not those that the
    certificate names by their hashes.
    """
    return decode_message(read_message(files.certificate), files, device)


def decode_message(message: Message, files: CertificateFiles, device: torch.device) -> DecodedRun:
    """Do the work of `decode_certificate` for a certificate that has been read."""
    settings, header = message.settings, message.header
    settings = settings.model_copy(update={"compute": settings.compute.model_copy(update={"compile": False})})
    base = _base(message, files)
    network, subspace = adaptable(
        settings, message.spec, base, header.vocab_size, device, scale_points=header.scale_points
    )
    for what, named, found in SubspaceHashes.of(network.space, subspace).beside(header):
        if named != found:
            raise UserError(
                f"{files.certificate}: the sha256 of its {what} is {named[:12]}..., here {found[:12]}...; "
                "decode it with the release of sublora that wrote it"
            )
    contents = message.contents
    theta_D = subspace.decoded(contents.weights.values(), contents.gates)
    return DecodedRun(files, message, base, network, theta_D, device)


def _base(message: Message, files: CertificateFiles) -> AnyBase:
    """Return the base, drawn from the run's seed or read from its file; UserError if it is not the certificate's."""
    settings, header = message.settings, message.header
    base: AnyBase
    if isinstance(settings.base, config.RandomBase):
        where, base = "the random base", random_base(settings, header.vocab_size, message.spec.seed)
    else:
        path = files.base_weights()
        where, base = str(path), read_base(path, settings, header.vocab_size, fix=NAME_IT)
    if base.sha256 != header.base_sha256:
        raise UserError(
            f"{where}: weights hash to {base.sha256[:12]}..., {files.certificate} names {header.base_sha256[:12]}"
            "...; name the certificate's own base with --base"
        )
    return base
