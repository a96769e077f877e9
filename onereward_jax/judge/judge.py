"""`Judge`: one vision-language model that compares two images in any task and dimension."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from onereward_jax import questions, tasks
from onereward_jax.atomic_files import write_json
from onereward_jax.errors import UserError
from onereward_jax.given_files import read_json
from onereward_jax.judge import answer_probabilities, conversation
from onereward_jax.judge.answer_probabilities import ImageTokens
from onereward_jax.judge.scorer import JudgeScorer, ask_batch
from onereward_jax.judge.vision import ImageSettings, smart_resize
from onereward_jax.models.lora import detach, merge
from onereward_jax.parallel import hosts
from onereward_jax.weights.hub import model_directory
from onereward_jax.weights.load import module_from_directory, open_component
from onereward_jax.weights.names import qwen2_5_vl
from onereward_jax.weights.peft_adapters import Adapters, with_adapters
from onereward_jax.weights.save import write_component

PREPROCESSOR_FILE = "preprocessor_config.json"
# The question templates used in training; official releases have no such file, and the templates in `tasks` are used.
QUESTIONS_FILE = "questions.json"
# Questions are padded to a multiple of this, so that similar lengths share a compiled program.
QUESTION_BUCKET = 16


class Judge:
    """Qwen2.5-VL with its tokenizer and image preprocessing.

    Attributes:
      model: `Qwen2_5_VL`.
      params: its parameters.
      tokenizer: a transformers tokenizer.
      settings: how images are resized, normalised and split into patches.
      prefix: the text around the two images.
      yes_no: token ids of the two answers.
      scorer: the judge as a pure function of its parameters, for training steps.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        tokenizer: Any,
        settings: ImageSettings,
        *,
        template: str = questions.QUESTION_TEMPLATE,
        template_with_prompt: str = questions.QUESTION_WITH_PROMPT_TEMPLATE,
    ):
        """See `create` and `from_pretrained`.

        Args:
          template, template_with_prompt: of the question Φ(task, dimension, prompt), see `questions.question`.

        Raises:
          UserError: model, tokenizer and image settings do not fit together.
        """
        questions.check_template(template, ("task", "dimension"))
        questions.check_template(template_with_prompt, ("task", "dimension", "prompt"))
        visual = model.visual
        for mine, theirs in (
            ("patch_size", visual.patch_size),
            ("merge_size", visual.spatial_merge_size),
            ("temporal_patch_size", visual.temporal_patch_size),
        ):
            if getattr(settings, mine) != theirs:
                raise UserError(
                    f"{mine} is {getattr(settings, mine)} in {PREPROCESSOR_FILE}, but the model's is {theirs}:"
                    " use the files of one release"
                )
        if len(tokenizer) > model.model.vocab_size:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} tokens, but the model only {model.model.vocab_size}:"
                " use the files of one release"
            )
        self.model, self.params, self.tokenizer, self.settings = model, params, tokenizer, settings
        self.template, self.template_with_prompt = template, template_with_prompt
        self.prefix = conversation.shared_prefix(tokenizer)
        self.yes_no = conversation.answer_ids(tokenizer)
        self.scorer: Any = JudgeScorer(model, self.prefix, self.yes_no, settings)
        # Training repeats the same few conversation.
        self._tokens = functools.lru_cache(maxsize=10_000)(functools.partial(conversation.question_tokens, tokenizer))
        self._processor: Any = None
        self._encode_patches = jax.jit(
            lambda params, patches, grid: answer_probabilities.encode_patches(model, params, patches, grid),
            static_argnums=2,
        )
        self._encode_pixels = jax.jit(
            lambda params, images: answer_probabilities.encode_image(model, params, images, settings)
        )
        self._answer = jax.jit(self.apply)

    @classmethod
    def create(
        cls,
        config: Mapping[str, Any],
        tokenizer: Any,
        settings: ImageSettings | None = None,
        seed: int = 0,
        *,
        dtype: Any = jnp.float32,
        remat: str = "none",
        attention_implementation: str = "xla",
        **templates: str,
    ) -> "Judge":
        """Create a judge with random weights.

        Args:
          config: as in an official `config.json`.
          settings: None uses the model's patch and merge sizes, and no limit on the area.
        """
        config = dict(config) | {"image_token_id": tokenizer.convert_tokens_to_ids(conversation.IMAGE_TOKEN)}
        model = qwen2_5_vl.module_from_config(
            config, dtype=dtype, remat=remat, attention_implementation=attention_implementation
        )
        if settings is None:
            visual = model.visual
            settings = ImageSettings(
                visual.patch_size, visual.spatial_merge_size, visual.temporal_patch_size, min_pixels=1, max_pixels=2**30
            )
        init = jax.jit(lambda key: model.init(key, *qwen2_5_vl.example_inputs(model))["params"])
        return cls(model, init(jax.random.key(seed)), tokenizer, settings, **templates)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | pathlib.Path,
        dtype: str = "bfloat16",
        lora: Adapters = None,
        fields: Mapping[str, Any] | None = None,
        mesh: Mesh | None = None,
        read: bool = True,
        **templates: str,
    ) -> "Judge":
        """Load an official directory: config.json (flat or nested), weights, tokenizer, preprocessor_config.json.

        Args:
          path_or_repo: the directory, or a repository on the Hugging Face hub: "Qwen/Qwen2.5-VL-7B-Instruct".
          dtype: dtype of parameters and computation: "bfloat16", or "float32" for training and exact comparisons.
            P(Yes) and P(No) are float32 either way.
          lora: adapters in PEFT's layout: a path or a repository, or several, each with or without a weight. They are
            attached; `save_pretrained` merges them.
          fields: more fields of the model: `remat`, `attention_implementation`; the compute `dtype` alone.
          mesh: the parameters are spread over it by `parallel.sharding_rules`; None puts them on one device.
          read: whether to read the parameters; otherwise `params` is a `weights.load.StoredParams`, to be read when and
            where they are needed.

        Raises:
          FileNotFoundError: a file is missing.
          UserError: the files do not describe a Qwen2.5-VL, or do not fit together.
        """
        from onereward_jax.weights.tokenizer import load_tokenizer

        directory = model_directory(path_or_repo)
        # Report a wrong architecture before missing files that only a judge has.
        module_from_directory(directory, "judge")
        preprocessor = directory / PREPROCESSOR_FILE
        if not preprocessor.is_file():
            raise FileNotFoundError(f"{preprocessor} is missing: copy it from the release")
        model, stored = open_component(directory, "judge", {"dtype": jnp.dtype(dtype), **(fields or {})})
        params: Any = stored
        if read:
            params = jax.tree.map(jnp.asarray, with_adapters("judge", stored.read(dtype, mesh), lora))
        tokenizer = load_tokenizer(directory, model.model.vocab_size)
        settings = ImageSettings.from_file(preprocessor)
        if (directory / QUESTIONS_FILE).is_file():
            templates = _templates(directory / QUESTIONS_FILE) | templates
        return cls(model, params, tokenizer, settings, **templates)

    def save_pretrained(self, directory: str | pathlib.Path, params: Any = None, dtype: str = "float32") -> None:
        """Write weights, tokenizer, chat template and image settings for transformers; see `save_component`.

        Args:
          directory: new, empty or an earlier output, see `atomic_files.check_output`.
          params: parameters to write in place of the judge's own.
        """
        if not self.tokenizer.chat_template:
            self.tokenizer.chat_template = conversation.CHAT_TEMPLATE
        params = merge(*detach(self.params if params is None else params))
        templates = {"template": self.template, "template_with_prompt": self.template_with_prompt}
        with hosts.primary_output(pathlib.Path(directory)) as partial:
            write_component(partial, "judge", self.model, params, dtype)
            if partial is None:
                return
            self.tokenizer.save_pretrained(partial)
            write_json(partial / PREPROCESSOR_FILE, self.settings.to_config())
            write_json(partial / QUESTIONS_FILE, templates)

    # Questions.

    def question(self, task: str, dimension: str, prompt: str | None = None) -> str:
        """Return the question Φ(task, dimension, prompt) from this judge's template."""
        return questions.question(task, dimension, prompt, self.template, self.template_with_prompt)

    def encode_questions(self, texts: Sequence[str | None], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Tokenise and pad questions for a batch.

        Args:
          texts: D questions; None where a dimension is not asked.
          length: S; None uses the longest question.

        Returns:
          ids int32 (D, S) and lengths int32 (D,).
        """
        tokens = [() if text is None else self._tokens(text) for text in texts]
        return conversation.pad(tokens, length, self.tokenizer.pad_token_id or 0)

    def check_questions(self, texts: Sequence[str], length: int | None = None) -> None:
        """Check that `encode_questions` would encode them.

        Raises:
          UserError: a question can't be encoded, or has more than `length` tokens.
        """
        conversation.padded_length([self._tokens(text) for text in texts], length)

    # Pure functions of the parameters.

    def apply(self, params: Any, batch: Mapping[str, Any], both_orders: bool = False) -> jax.Array:
        """Compute log P(Yes) and log P(No) over the whole vocabulary; pure, can be jitted and differentiated.

        Args:
          params: the model's parameters; the judge's own are not used.
          batch: first, second: (B, H, W, 3), float in [0, 1] or uint8, of any two sizes, or `ImageTokens`
            question_ids: int32 (B, D, S); question_lengths: int32 (B, D), 0 where a dimension is not asked
          both_orders: also ask with the images swapped; each image is still encoded once.

        Returns:
          float32 (B, D, 2), or (2, B, D, 2) with both orders.
        """
        return ask_batch(self.scorer, params, batch, both_orders)

    def log_p_yes(self, first: Any, second: Any, *, question: str, params: Any = None) -> jax.Array:
        """Compute log P(Yes) of one question about one pair: a scalar, differentiable in both images and `params`.

        Args:
          first, second: (H, W, 3), float in [0, 1]; values outside are not clipped.
          params: None uses the judge's own; under `jax.jit` pass them, or they are compiled in as constants.
        """
        ids, lengths = self.encode_questions([question])
        first, second = (x if isinstance(x, ImageTokens) else jnp.asarray(x)[None] for x in (first, second))
        batch = {"first": first, "second": second, "question_ids": ids[None], "question_lengths": lengths[None]}
        return self.apply(self.params if params is None else params, batch)[0, 0, 0]

    # For people.

    def encode(self, image: Any) -> ImageTokens:
        """Encode an image with the vision tower, so that it can be compared many times.

        Args:
          image: PIL image or uint8 (H, W, 3), preprocessed by the official processor; or float (H, W, 3) in [0, 1].

        Returns:
          tokens that `ask`, `compare`, `compare_all` and `log_p_yes` accept in place of an image.

        Raises:
          UserError: the array has another shape or dtype.
        """
        if isinstance(image, ImageTokens):
            return image
        array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
        if array.ndim != 3 or array.shape[-1] != 3:
            raise UserError(f"an image has the shape (height, width, 3), not {array.shape}: convert it to RGB")
        if jnp.issubdtype(array.dtype, jnp.floating):
            return self._encode_pixels(self.params, jnp.asarray(array, jnp.float32)[None])
        if array.dtype != np.uint8:
            raise UserError(f"an image is uint8, or float in [0, 1], not {array.dtype}: convert it to uint8")
        smart_resize(
            array.shape[0], array.shape[1], self.settings
        )  # or the processor refuses an elongated image, in other words
        # Without `input_data_format`, an image with one or three rows would be taken as channels first.
        inputs = self._official_processor()(images=[array], input_data_format="channels_last", return_tensors="np")
        _, rows, columns = (int(x) for x in inputs["image_grid_thw"][0])
        return self._encode_patches(self.params, jnp.asarray(inputs["pixel_values"])[None], (rows, columns))

    def ask(self, first: Any, second: Any, *, question: str) -> dict[str, float]:
        """Ask a question in your own words: P(Yes) and P(No) over the whole vocabulary.

        Args:
          first, second: images, see `encode`, or the tokens that it returned.
        """
        yes, no = self._ask(self.encode(first), self.encode(second), [[question]])[0, 0]
        return {"yes": float(yes), "no": float(no)}

    def compare(
        self,
        first: Any,
        second: Any,
        *,
        task: str | Sequence[str],
        dimension: str | Sequence[str],
        prompt: str | Sequence[str | None] | None = None,
        batch_size: int = 16,
    ) -> Any:
        """Compare two images: P(Yes), that the first is better than the second in a dimension of a task.

        Args:
          first, second: images, see `encode`; or lists of N images of any sizes.
          task, dimension, prompt: one value for all pairs, or lists of N.
          batch_size: the largest number of pairs of one shape in a batch.

        Returns:
          a float; for lists float32 (N,), with the same values as one pair at a time.

        Raises:
          UserError: the dimension does not belong to the task, text alignment has no prompt, or the lists differ in
            length.
        """
        if not isinstance(first, list | tuple):
            return self.ask(first, second, question=self.question(task, dimension, prompt))["yes"]  # type: ignore[arg-type]
        count = len(first)
        columns = [[x] * count if x is None or isinstance(x, str) else list(x) for x in (task, dimension, prompt)]
        if any(len(column) != count for column in ([*second], *columns)):
            raise UserError("lists of images, tasks, dimensions and prompts differ in length: give one for each pair")
        texts = [self.question(*words) for words in zip(*columns, strict=True)]
        pairs = [(self.encode(a), self.encode(b)) for a, b in zip(first, second, strict=True)]
        by_grid: dict[Any, list[int]] = {}
        for number, (a, b) in enumerate(pairs):
            by_grid.setdefault((a.grid, b.grid), []).append(number)
        p_yes = np.zeros(count, np.float32)
        for numbers in by_grid.values():
            for start in range(0, len(numbers), batch_size):
                rows = numbers[start : start + batch_size]
                # Padded to a power of two: fewer batch sizes, fewer compiled programs.
                padded = rows + rows[-1:] * ((1 << (len(rows) - 1).bit_length()) - len(rows))
                a, b = (_concatenated([pairs[n][side] for n in padded]) for side in (0, 1))
                p_yes[rows] = self._ask(a, b, [[texts[n]] for n in padded])[: len(rows), 0, 0]
        return p_yes

    def compare_all(self, first: Any, second: Any, *, task: str, prompt: str | None = None) -> dict[str, float]:
        """Compute P(Yes) in all dimensions of the task at once; extension without a prompt has no text alignment."""
        dimensions = tasks.dimensions_of(task, prompt or "")
        asked = [self.question(task, dimension, prompt) for dimension in dimensions]
        answers = self._ask(self.encode(first), self.encode(second), [asked])[0]
        return {dimension: float(answer[0]) for dimension, answer in zip(dimensions, answers, strict=True)}

    def _ask(self, first: ImageTokens, second: ImageTokens, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """Compute P(Yes), P(No) for B pairs and D texts per pair: (B, D, 2)."""
        tokens = [self._tokens(text) for row in texts for text in row]
        length = -(-max(map(len, tokens)) // QUESTION_BUCKET) * QUESTION_BUCKET
        ids, lengths = conversation.pad(tokens, length, self.tokenizer.pad_token_id or 0)
        batch = {
            "first": first,
            "second": second,
            "question_ids": ids.reshape(len(texts), -1, length),
            "question_lengths": lengths.reshape(len(texts), -1),
        }
        p = np.exp(np.asarray(self._answer(self.params, batch)))
        if not np.isfinite(p).all():
            raise UserError("the judge's answer is NaN or Inf: check the weights and the images for NaN")
        return p

    def _official_processor(self) -> Any:
        if self._processor is None:
            # The variant that needs neither torch nor torchvision.
            from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

            config = self.settings.to_config()
            fields = ("size", "patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
            self._processor = Qwen2VLImageProcessorPil(**{name: config[name] for name in fields})
        return self._processor


def _templates(file: pathlib.Path) -> dict[str, str]:
    templates = read_json(file)
    if unknown := sorted(templates.keys() - {"template", "template_with_prompt"}):
        raise UserError(f"{file} has {', '.join(unknown)[:60]}, which is no question template: take it out")
    return templates


def _concatenated(images: Sequence[ImageTokens]) -> ImageTokens:
    """Concatenate images of one grid into a batch."""
    return ImageTokens(jnp.concatenate([image.features for image in images]), images[0].grid)
