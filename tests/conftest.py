"""One torch thread, and with LIMBECK_TYPECHECK=1 (set by `make test`) annotations checked at every call."""

import os

import torch

torch.set_num_threads(1)

if os.environ.get("LIMBECK_TYPECHECK") == "1":
    import jaxtyping

    jaxtyping.install_import_hook("limbeck", "beartype.beartype")  # acts on imports that come after it
