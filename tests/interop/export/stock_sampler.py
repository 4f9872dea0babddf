"""Runs in a process of its own, in which limbeck cannot be imported: loads pipelines with stock diffusers and samples them.

Called with the path of a list of jobs (JSON): ``folder``, ``kind`` (the pipeline's class), ``call`` (its arguments), ``seed``,
``out`` (a .npy), and perhaps ``lora`` and ``scheduler`` (folders of adapters, of another scheduler).
Or ``code`` alone, run in the folder ``place``.
"""

import contextlib
import json
import sys
from pathlib import Path


class Blocked:
    """Finds no limbeck, wherever it may lie."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "limbeck":
            raise ImportError(f"{name} must not be needed here")


sys.meta_path.insert(0, Blocked())

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()


def sampled(job):
    if "code" in job:
        with contextlib.chdir(job["place"]):
            exec(job["code"], {})
        return np.zeros(1)
    pipe = getattr(diffusers, job["kind"]).from_pretrained(job["folder"])
    pipe.set_progress_bar_config(disable=True)
    if "lora" in job:
        pipe.load_lora_weights(job["lora"])
    if "scheduler" in job:
        name = json.loads((Path(job["scheduler"]) / "scheduler_config.json").read_text())["_class_name"]
        pipe.scheduler = getattr(diffusers, name).from_pretrained(job["scheduler"])
    answer = pipe(**job["call"], generator=torch.manual_seed(job["seed"]), return_dict=False)[0]
    return answer.numpy() if isinstance(answer, torch.Tensor) else np.asarray(answer)


if __name__ == "__main__":
    try:
        import limbeck  # noqa: F401

        raise SystemExit("limbeck could be imported")
    except ImportError:
        pass
    for each in json.loads(Path(sys.argv[1]).read_text()):
        np.save(each["out"], sampled(each))
