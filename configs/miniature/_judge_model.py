"""What every judge of the miniature is: its shape, and its question."""

TEXT_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": (4, 6, 6)},
    "tie_word_embeddings": True,
}
VISION_CONFIG = {
    "depth": 3,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_heads": 4,
    "in_channels": 3,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 32,
    "out_hidden_size": 128,
    "fullatt_block_indexes": (2,),
}
# Shorter than the words of onereward_jax.tasks: a question's tokens are most of what the miniature computes.
TEMPLATE = "{task}: {dimension}?"
TEMPLATE_WITH_PROMPT = "{task}: {prompt}?"
