"""The DeciLM export: a directory for vLLM, SGLang and TensorRT-LLM, its code, and the rules of those that read it."""
