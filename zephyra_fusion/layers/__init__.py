"""The parts of the family, each under its field's name.

norm                RMSNorm, LayerNorm, AdaptiveNorm
position            rotary, xPos, sinusoidal, learned, none; rope_scaling: linear, Llama 3, YaRN
embedding           AdaptiveInput (document 000)
scaled_dot_product  ScaledDotProductAttention (000, "standard"), fused ("sdpa", "flash"), in chunks ("xformer")
frequency           FrequencyAttention (004)
attention           Attention: multi-head, grouped-query, multi-query; MultiHeadAttention (000)
feed_forward        GatedFeedForward (SwiGLU), PositionwiseFeedForward (000)
moe                 MixtureOfExperts
cache               growing, and rotating for sliding windows; static_cache: fixed shapes
lora                LoRALinear (001), AdapterMix
block               BaseTransformerLayer (004), DecoderLayer (002), CrossAttentionLayer, ZephyraFusionBlock (000)
parallel_block      TransformerBlock (003)
sequence            what document 004's encoder (TransformerEncoder) and decoder (TransformerDecoder) share
adapter_fusion      AdapterFusion (002)
"""
