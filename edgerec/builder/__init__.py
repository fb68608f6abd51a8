"""build_engine in five steps: contract, quantize, compile, parity, pack."""
