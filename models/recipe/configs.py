"""config.json of the three models."""
_COMMON = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": 0,
    "hidden_act": "silu", "hidden_size": 192, "initializer_range": 0.02,
    "max_position_embeddings": 512, "num_attention_heads": 4, "num_experts_per_tok": 4,
    "num_hidden_layers": 6, "num_key_value_heads": 4, "norm_topk_prob": True,
    "output_router_logits": False, "pad_token_id": None, "rope_scaling": None,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 2048,
}
V3 = _COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "first_k_dense_replace": 1, "intermediate_size": 448, "moe_intermediate_size": 48,
    "kv_lora_rank": 48, "q_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 48, "n_group": 8, "topk_group": 4, "n_routed_experts": 32,
    "n_shared_experts": 1, "num_nextn_predict_layers": 0, "pretraining_tp": 1,
    "rms_norm_eps": 1e-6, "rope_interleave": True, "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc",
}
OLMOE = _COMMON | {
    "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "clip_qkv": None,
    "intermediate_size": 40, "num_experts": 32, "rms_norm_eps": 1e-5,
    "router_aux_loss_coef": 0.01,
}
# name -> (config, coefficient of the auxiliary loss)
MODELS = {
    "v3-lossfree": (V3, 0.),
    "softmax-aux": (OLMOE, 0.01),
    "softmax-none": (OLMOE | {"router_aux_loss_coef": 0.0}, 0.),
}
