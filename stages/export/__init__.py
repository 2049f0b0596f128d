"""The exports: a model as a GGUF file for llama.cpp, and a directory to publish with its model card."""
