"""The PyTorch side: float model, fake-quant twin, calibration, conversion, measurements; imported as `intseg.tools`.

The runtime never imports it; the command line does when one of its commands is asked for.
"""

if __name__ != "intseg.tools":
    raise ImportError("this folder is the package intseg.tools: import it under that name")
