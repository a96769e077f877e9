"""A tiny judge, ours and transformers', and inputs as transformers' processor makes them."""

import transformers

from onereward_jax.judge import conversation
from onereward_jax.weights.names import qwen2_5_vl as weights
from tests.support import parity, tiny_judge

# Windows are 16 pixels: the first image is whole windows, the second is cut on both sides.
SIZES = ((32, 48), (40, 24))


def models(**changes):
    config = tiny_judge.config(len(tiny_judge.tokenizer()), **changes)
    config["image_token_id"] = tiny_judge.tokenizer().convert_tokens_to_ids(conversation.IMAGE_TOKEN)
    theirs = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**config))
    theirs = parity.randomize(theirs)
    ours = weights.module_from_config(config)
    params = parity.params_from_torch(
        theirs, weights.TABLE, ours, weights.example_inputs(ours), rename=weights.official_name
    )
    return ours, params, theirs


def official_inputs(text, images):
    """What `Qwen2_5_VLProcessor`, which needs torchvision, does with its parts: the chat template's text, the token of
    an image repeated as often as it has tokens, and the image processor's patches.

    images: the first and the second of each pair, uint8 (B, H, W, 3).
    """
    tokenizer, processor = tiny_judge.tokenizer(), tiny_judge.judge()._official_processor()
    inputs = processor(images=[image[i] for i in range(len(images[0])) for image in images], return_tensors="pt")
    parts = tokenizer.apply_chat_template(
        conversation.messages_of(text), tokenize=False, add_generation_prompt=True
    ).split(conversation.IMAGE_TOKEN)
    assert len(parts) == 3
    counts = (inputs["image_grid_thw"].prod(dim=1) // tiny_judge.SETTINGS.merge_size**2)[:2]
    pads = [conversation.IMAGE_TOKEN * int(count) for count in counts]
    whole = parts[0] + pads[0] + parts[1] + pads[1] + parts[2]
    texts = tokenizer([whole] * len(images[0]), return_tensors="pt")
    image_tokens = (texts["input_ids"] == tokenizer.convert_tokens_to_ids(conversation.IMAGE_TOKEN)).int()
    return {**texts, **inputs, "mm_token_type_ids": image_tokens}
