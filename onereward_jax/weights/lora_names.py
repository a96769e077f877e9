"""What other programs call the layers of FLUX: Black Forest Labs' own names (kohya's sd-scripts and ComfyUI write them
too, with or without underscores), and XLabs'.

Some are fused: their rows are those of several of diffusers' layers, one after the other.
"""

_DOUBLE, _SINGLE = "transformer_blocks.{layer}", "single_transformer_blocks.{layer}"
_IMAGE_QKV = tuple(f"{_DOUBLE}.attn.to_{x}" for x in "qkv")
_TEXT_QKV = tuple(f"{_DOUBLE}.attn.add_{x}_proj" for x in "qkv")
_SINGLE_QKV = tuple(f"{_SINGLE}.attn.to_{x}" for x in "qkv")

# The rows of this one are (shift, scale) there and (scale, shift) in diffusers.
SHIFT_FIRST = "final_layer.adaLN_modulation.1"

FLUX: dict[str, tuple[str, ...]] = {
    # Black Forest Labs
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    **{
        f"{theirs}_in.{layer}": (f"time_text_embed.{name}_embedder.linear_{number}",)
        for theirs, name in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance"))
        for layer, number in (("in_layer", 1), ("out_layer", 2))
    },
    "double_blocks.{layer}.img_mod.lin": (f"{_DOUBLE}.norm1.linear",),
    "double_blocks.{layer}.txt_mod.lin": (f"{_DOUBLE}.norm1_context.linear",),
    "double_blocks.{layer}.img_attn.qkv": _IMAGE_QKV,
    "double_blocks.{layer}.txt_attn.qkv": _TEXT_QKV,
    "double_blocks.{layer}.img_attn.proj": (f"{_DOUBLE}.attn.to_out.0",),
    "double_blocks.{layer}.txt_attn.proj": (f"{_DOUBLE}.attn.to_add_out",),
    "double_blocks.{layer}.img_mlp.0": (f"{_DOUBLE}.ff.net.0.proj",),
    "double_blocks.{layer}.img_mlp.2": (f"{_DOUBLE}.ff.net.2",),
    "double_blocks.{layer}.txt_mlp.0": (f"{_DOUBLE}.ff_context.net.0.proj",),
    "double_blocks.{layer}.txt_mlp.2": (f"{_DOUBLE}.ff_context.net.2",),
    "single_blocks.{layer}.modulation.lin": (f"{_SINGLE}.norm.linear",),
    "single_blocks.{layer}.linear1": (*_SINGLE_QKV, f"{_SINGLE}.proj_mlp"),
    "single_blocks.{layer}.linear2": (f"{_SINGLE}.proj_out",),
    "final_layer.linear": ("proj_out",),
    SHIFT_FIRST: ("norm_out.linear",),
    # XLabs
    "double_blocks.{layer}.processor.qkv_lora1": _IMAGE_QKV,
    "double_blocks.{layer}.processor.qkv_lora2": _TEXT_QKV,
    "double_blocks.{layer}.processor.proj_lora1": (f"{_DOUBLE}.attn.to_out.0",),
    "double_blocks.{layer}.processor.proj_lora2": (f"{_DOUBLE}.attn.to_add_out",),
    "single_blocks.{layer}.processor.qkv_lora": _SINGLE_QKV,
    "single_blocks.{layer}.processor.proj_lora": (f"{_SINGLE}.proj_out",),
}
