"""Questions in, Samples out: data, prompts, the vLLM engine and the receiving end of weight updates."""
