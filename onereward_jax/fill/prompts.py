"""Prompts as the flow transformer reads them: T5's token states and CLIP's pooled state."""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from onereward_jax.atomic_files import fingerprint
from onereward_jax.buckets import is_bucket, native
from onereward_jax.errors import UserError
from onereward_jax.fill import encoded_prompts
from onereward_jax.fill.encoded_prompts import EncodedPrompts
from onereward_jax.parallel import hosts
from onereward_jax.weights.load import StoredParams, open_component
from onereward_jax.weights.tokenizer import load_tokenizer, tokenizer_errors

Tree = Any
_Pair = tuple[str, str]  # what CLIP reads, what T5 reads
MAX_LENGTH = 512  # of T5's tokens, as in FluxFillPipeline


@dataclass
class PromptEncoder:
    """Two tokenizers and two text encoders, named as in a diffusers directory.

    Encodings are kept on the host, the most recently used `cache_size` of them, so a prompt that comes again
    costs a copy. Equals `FluxFillPipeline.encode_prompt`: CLIP reads the prompt padded to its own length and
    gives the pooled state; T5 reads it, or another one, padded to `max_sequence_length`, and attends to the padding.

    Attributes:
      tokenizer, text_encoder, text_encoder_params: CLIP.
      tokenizer_2, text_encoder_2, text_encoder_2_params: T5.
      dtype: in which the parameters are read, where they are `weights.load.StoredParams`.
      fingerprint: of the encoders' files, if they were read from some.
      batch_size: prompts that go through the encoders at once; the last batch is filled up, so that one
        compiled program serves all.
      cache_size: number of encodings kept. At full size, one of 512 tokens takes 8 MiB in float32.
    """

    tokenizer: PreTrainedTokenizerBase
    tokenizer_2: PreTrainedTokenizerBase
    text_encoder: Any
    text_encoder_2: Any
    text_encoder_params: Tree
    text_encoder_2_params: Tree
    batch_size: int = 8
    cache_size: int = 1024
    dtype: str = "float32"
    fingerprint: str = ""
    _stored: EncodedPrompts | None = field(default=None, init=False, repr=False, compare=False)
    _cache: OrderedDict[tuple[str, str, int], tuple[np.ndarray, np.ndarray]] = field(
        default_factory=OrderedDict, init=False, repr=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        read: bool = True,
        **fields: Any,
    ) -> "PromptEncoder":
        """Reads `tokenizer`, `tokenizer_2`, `text_encoder` and `text_encoder_2` of a diffusers directory.

        Args:
          directory: the pipeline's directory.
          dtype: "float32" or "bfloat16", of the encoders' parameters (they are not trained) and computation.
          mesh: where the encoders' parameters lie, by its rules; None puts them on one device.
          read: whether to read the parameters now, and not by `read`.
          fields: `batch_size`, `cache_size`.

        Raises:
          FileNotFoundError: a part of the directory is missing.
          UserError: an encoder's files do not fit its configuration, or a tokenizer can't be read.
        """
        directory = Path(directory)
        for part in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"):
            if not (directory / part).is_dir():
                raise FileNotFoundError(
                    f"{directory} has no folder {part!r}: give a directory in the layout of diffusers"
                )
        text_encoder, params = open_component(directory / "text_encoder", "text_encoder", {"dtype": jnp.dtype(dtype)})
        text_encoder_2, params_2 = open_component(
            directory / "text_encoder_2", "text_encoder_2", {"dtype": jnp.dtype(dtype)}
        )
        encoder = cls(
            tokenizer=_padding_tokenizer(directory / "tokenizer", text_encoder.vocab_size),
            tokenizer_2=_padding_tokenizer(directory / "tokenizer_2", text_encoder_2.vocab_size),
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            text_encoder_params=params,
            text_encoder_2_params=params_2,
            dtype=dtype,
            fingerprint=" ".join(fingerprint(directory / part) for part in ("text_encoder", "text_encoder_2")),
            **fields,
        )
        if read:
            encoder.read(mesh)
        return encoder

    def read(self, mesh: Mesh | None = None) -> None:
        """Read the encoders' parameters, if they are unread; `mesh` as of `from_pretrained`."""
        place = jax.device_put if mesh is None else lambda params: params
        for name in ("text_encoder_params", "text_encoder_2_params"):
            params = getattr(self, name)
            if isinstance(params, StoredParams):
                setattr(self, name, place(params.read(self.dtype, mesh)))

    def release(self) -> None:
        """Frees the encoders' parameters; prompts that were encoded before are still known."""
        self.text_encoder_params = self.text_encoder_2_params = None

    def forget(self) -> None:
        """Forget the encodings kept on the host, so that the next ones don't depend on what came before."""
        with self._lock:
            self._cache.clear()

    def encode_ahead(
        self, prompts: Iterable[str], max_sequence_length: int, directory: Path, mesh: Mesh | None = None
    ) -> None:
        """Encode every prompt that a run will ask for into files, unless an earlier start of it did, and free the
        encoders' parameters. Of several processes, all call this alike.

        Args:
          prompts: in any order, repeated or not.
          directory: for the files; of several processes, one that they share, or of a working directory (of one in
            a bucket each has its own).
          mesh: over which unread parameters are spread; None is one device.
        """
        texts = list(dict.fromkeys(prompts))
        about = {
            "max_sequence_length": max_sequence_length,
            "dtype": self.dtype,
            "encoders": self.fingerprint,
            "prompts": texts,
        }
        if not all(hosts.gather(encoded_prompts.is_there(directory, about))):
            self.read(mesh)
            starts = tqdm(range(0, len(texts), self.batch_size), desc="encoding prompts", disable=None)
            encoded = (self._compute(_same(texts[at : at + self.batch_size]), max_sequence_length) for at in starts)
            if hosts.is_primary() or is_bucket(native(directory)):
                encoded_prompts.write(directory, about, encoded)
            else:
                for _ in encoded:
                    pass
            hosts.share(directory)
        self._stored = EncodedPrompts(directory)
        self.release()

    @property
    def clip_length(self) -> int:
        """Number of tokens that CLIP reads."""
        return min(self.tokenizer.model_max_length, self.text_encoder.max_position_embeddings)

    def tokenize(
        self, prompts: Sequence[str], max_sequence_length: int = 512, prompts_2: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token numbers of the prompts, padded and cut; a warning names what was cut.

        Args:
          prompts_2: what T5 reads; None: the same as CLIP.

        Returns:
          (B, `clip_length`) int32 for CLIP and (B, `max_sequence_length`) int32 for T5.

        Raises:
          UserError: FLUX has never seen so many tokens.
        """
        if not 1 <= max_sequence_length <= MAX_LENGTH:
            raise UserError(f"max_sequence_length is {max_sequence_length}: FLUX reads 1 to {MAX_LENGTH} tokens of T5")
        return (
            _tokenize(self.tokenizer, prompts, self.clip_length, "CLIP"),
            _tokenize(self.tokenizer_2, prompts if prompts_2 is None else prompts_2, max_sequence_length, "T5"),
        )

    def encode(
        self,
        prompts: str | Sequence[str],
        max_sequence_length: int = 512,
        prompts_2: str | Sequence[str] | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """What the flow transformer reads of the prompts; each distinct prompt is computed once.

        Args:
          prompts: B texts, or one.
          max_sequence_length: number of T5's tokens, L.
          prompts_2: what T5 reads, as many; None: the same as CLIP.

        Returns:
          T5's states (B, L, `joint_attention_dim`) and CLIP's pooled states (B, `pooled_projection_dim`).

        Raises:
          UserError: there is no prompt, or it is a new one after `release`.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        prompts_2 = [prompts_2] if isinstance(prompts_2, str) else prompts_2
        if not prompts:
            raise UserError("there is no prompt to encode: pass at least one, which may be empty")
        pairs = _same(prompts) if prompts_2 is None else list(zip(prompts, prompts_2, strict=True))
        with self._lock:  # batches are prepared in a thread of their own
            found = self._find(pairs, max_sequence_length)
        states, pooled = zip(*(found[pair] for pair in pairs), strict=True)
        return jnp.asarray(np.stack(states)), jnp.asarray(np.stack(pooled))

    def _find(self, pairs: Sequence[_Pair], max_sequence_length: int) -> dict[_Pair, tuple[np.ndarray, np.ndarray]]:
        """Encodings of the prompts, from the cache or computed and cached."""
        found: dict[_Pair, tuple[np.ndarray, np.ndarray]] = {}
        for pair in dict.fromkeys(pairs):
            stored = None
            if self._stored is not None and pair[0] == pair[1]:
                stored = self._stored.get(pair[0], max_sequence_length)
            if stored is not None:
                found[pair] = stored
            elif (key := (*pair, max_sequence_length)) in self._cache:
                self._cache.move_to_end(key)
                found[pair] = self._cache[key]
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in found]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            # Copies: a slice would keep the whole batch alive.
            found |= {
                pair: (states.copy(), pooled.copy())
                for pair, states, pooled in zip(batch, *self._compute(batch, max_sequence_length), strict=True)
            }
        for pair in missing:
            self._cache[(*pair, max_sequence_length)] = found[pair]
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return found

    def _compute(self, pairs: Sequence[_Pair], max_sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Encodings of at most `batch_size` prompts: (B, L, D) and (B, P), in the encoders' dtype."""
        if self.text_encoder_params is None:
            raise UserError(
                f"the text encoders were released before {pairs[0][1]!r} was encoded: encode all prompts first"
            )
        prompts, prompts_2 = zip(*pairs, strict=True)
        ids = self.tokenize(prompts, max_sequence_length, prompts_2)
        fill = ((0, self.batch_size - len(prompts)), (0, 0))
        clip_ids, t5_ids = (np.pad(of_encoder, fill, mode="edge") for of_encoder in ids)
        encoded = self._apply(self.text_encoder_params, self.text_encoder_2_params, clip_ids, t5_ids)
        states, pooled = (array[: len(prompts)] for array in hosts.fetch(encoded))
        return states, pooled

    @cached_property
    def _apply(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        return encoding(self.text_encoder, self.text_encoder_2)


def encoding(clip: Any, t5: Any) -> Any:
    """The jitted program that encodes prompts: (CLIP's parameters, T5's, CLIP's tokens (B, L'), T5's (B, L)) -> T5's
    states (B, L, D), CLIP's pooled states (B, P)."""

    @jax.jit
    def apply(clip_params, t5_params, clip_ids, t5_ids):
        _, pooled = clip.apply({"params": clip_params}, clip_ids)
        return t5.apply({"params": t5_params}, t5_ids), pooled

    return apply


def prompt_reader(
    prompts: PromptEncoder, length: int, batch_size: int, learning: bool = False
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that replaces the `prompt` of a batch by what `losses.flow_matching_loss` reads of it and, for samples
    whose prompt is dropped, of the empty one.

    Args:
      length: tokens that T5 reads.
      batch_size: the most samples of a batch.
      learning: whether the text encoders learn, so that tokens are read and not the states of fixed encoders.
    """
    names: tuple[str, ...] = ("prompt_embeds", "pooled", "negative_prompt_embeds", "negative_pooled")
    read: Callable[[list[str], int], tuple] = prompts.encode
    if learning:
        names, read = ("clip_ids", "t5_ids", "empty_clip_ids", "empty_t5_ids"), prompts.tokenize
    empty = read([""] * batch_size, length)

    def prepare(batch: dict[str, Any]) -> dict[str, Any]:
        texts = [str(text) for text in batch["prompt"]]
        others = {name: array for name, array in batch.items() if name != "prompt"}
        of_empty = (array[: len(texts)] for array in empty)
        return others | dict(zip(names, (*read(texts, length), *of_empty), strict=True))

    return prepare


def _same(prompts: Sequence[str]) -> list[_Pair]:
    """Prompts that both encoders read."""
    return [(prompt, prompt) for prompt in prompts]


def _padding_tokenizer(directory: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(directory, vocab_size)
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer in {directory} has no pad_token: put all files of its release there")
    return tokenizer


def _tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int, reader: str) -> np.ndarray:
    """(B, length) int32; warns of each prompt that is longer, or holds what the tokenizer does not know."""
    prompts = list(prompts)
    # CLIP's reads any byte, and its unknown token is the end of text.
    unknown = None if tokenizer.unk_token_id == tokenizer.eos_token_id else tokenizer.unk_token_id
    with tokenizer_errors(tokenizer.name_or_path):
        whole = tokenizer(prompts, return_offsets_mapping=True, verbose=False)
        cut = tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    for prompt, ids, offsets in zip(prompts, whole["input_ids"], whole["offset_mapping"], strict=True):
        if len(ids) > length:
            # The end-of-text token takes the last place, so the token that stood there is the first to go.
            rest = prompt[offsets[length - 1][0] :]
            warnings.warn(f"{reader} reads {length} tokens; cut from the end of the prompt: {rest!r}", stacklevel=4)
        lost = [prompt[start:stop] for token, (start, stop) in zip(ids, offsets, strict=True) if token == unknown]
        if lost:
            warnings.warn(f"{reader} has no token for {' '.join(lost)!r} in the prompt: use other words", stacklevel=4)
    return cut["input_ids"].astype(np.int32)
