"""The one table that names the methods. Importing it imports no method."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from limbeck.errors import missing_extra
from limbeck.tasks.catalogue import WINGS


@dataclass(frozen=True)
class Entry:
    """One system: where it lives and what it needs."""

    id: str
    title: str
    paper: str
    """The paper's title."""
    arxiv: str
    year: int
    module: str
    """The module with METHOD, OPTIONS and PRESETS ("": a sampler, which distils nothing)."""
    networks: str
    """Networks held at once."""
    aliases: tuple[str, ...] = ()
    data: str = "none"
    """Training images: none, optional or needed."""
    input_gradients: bool = False
    """Does it back-propagate through the teacher's input?"""
    null: str = "for guidance"
    """Does it need the teacher's null condition: no, for guidance, yes."""
    wing: str = "generators"
    """The folder of its room and of its claim."""
    extra: str = ""
    """The extra that holds what the method and its claim need beside the core: pip install 'limbeck[EXTRA]'."""
    packages: tuple[str, ...] = ()
    """The modules of that extra that they import."""
    fits: tuple[str, ...] = ()
    """The tasks of its wing that it distils (none named: all of them)."""

    @property
    def distils(self) -> bool:
        """Does ``limbeck distill`` run it? (It needs a method, not a sampler, and a task of its wing.)"""
        return bool(self.module) and self.wing in WINGS

    def require_extra(self) -> None:
        """Raise LimbeckError, naming the extra to install, where a package that this method needs is missing."""
        if absent := [name for name in self.packages if find_spec(name) is None]:
            raise missing_extra(self.extra, f"{self.id} needs {', '.join(absent)}")

    def load(self, to_read: bool = False) -> tuple[Any, Any, dict[str, Any]]:
        """(method class, options class, presets). Raises LimbeckError where the method's extra is not installed, unless they are
        only to be read about."""
        if not to_read:
            self.require_extra()
        room = import_module(self.module)
        return room.METHOD, room.OPTIONS, room.PRESETS


def _generator(id: str, *facts: Any, **more: Any) -> Entry:
    title, paper, arxiv, year, networks = facts
    return Entry(id, title, paper, arxiv, year, f"limbeck.methods.generators.{id.replace('-', '_')}", networks, **more)


def _classifier(id: str, *facts: Any, **more: Any) -> Entry:
    title, paper, arxiv, year, networks = facts
    room = f"limbeck.methods.recognition.{id.replace('-', '_')}"
    return Entry(id, title, paper, arxiv, year, room, networks, data="labelled", null="no", wing="recognition", **more)


def _scene(id: str, *facts: Any, **more: Any) -> Entry:
    title, paper, arxiv, year, networks = facts
    room = f"limbeck.methods.scenes.{id.replace('-', '_')}"
    return Entry(id, title, paper, arxiv, year, room, networks, wing="scenes", **more)


METHODS: dict[str, Entry] = {
    entry.id: entry
    for entry in (
        _generator(
            "dmd", "Distribution matching distillation (DMD, DMD2)",
            "One-step Diffusion with Distribution Matching Distillation", "2311.18828", 2023,
            "teacher, student, critic (+ discriminator heads)", aliases=("dmd2",), data="optional (GAN)",
        ),
        _generator(
            "f-distill", "Distribution matching by any f-divergence (f-distill)",
            "One-step Diffusion Models with f-Divergence Distribution Matching", "2502.15681", 2025,
            "teacher, student, critic, discriminator heads", aliases=("fdistill", "f-divergence"), data="needed",
        ),
        _generator(
            "disback", "Distribution backtracking (DisBack), around any score method",
            "Distribution Backtracking Builds A Faster Convergence Trajectory for Diffusion Distillation", "2408.15991", 2024,
            "teacher, student, critic, path of degraded teachers", aliases=("backtracking",),
        ),
        _generator(
            "sid", "Score identity distillation, one step or few (SiD, SiDA)",
            "Score identity Distillation: Exponentially Fast Distillation of Pretrained Diffusion Models for One-Step Generation",
            "2404.04057", 2024, "teacher, student, critic", aliases=("sida", "sid-few-step"), data="optional (GAN)",
            input_gradients=True,
        ),
        _generator(
            "sim", "Score implicit matching by any distance (SIM)",
            "One-Step Diffusion Distillation through Score Implicit Matching", "2410.16794", 2024, "teacher, student, critic",
            input_gradients=True,
        ),
        _generator(
            "sfd", "Score forgetting distillation (SFD)",
            "Score Forgetting Distillation: A Swift, Data-Free Method for Machine Unlearning in Diffusion Models",
            "2409.11219", 2024, "teacher, student, critic", aliases=("forgetting",), input_gradients=True,
        ),
        _generator(
            "swiftbrush", "Variational score distillation, image-free (SwiftBrush)",
            "SwiftBrush: One-Step Text-to-Image Diffusion Model with Variational Score Distillation", "2312.05239", 2023,
            "teacher with adapters (the critic), student", aliases=("swiftbrush-v2",),
        ),
        _generator(
            "snoopi", "Random guidance and negative prompts for one-step generators (SNOOPI)",
            "SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance", "2412.02687", 2024,
            "teacher with adapters (the critic), student", aliases=("nasa", "pg-sb"), null="yes",
        ),
        _generator(
            "tdm", "Trajectory distribution matching (TDM, TDM-unify)",
            "Learning Few-Step Diffusion Models by Trajectory Distribution Matching", "2503.06674", 2025,
            "teacher, student, critic", aliases=("tdm-unify",), data="optional (GAN)",
        ),
        _generator(
            "phased-dmd", "Distribution matching by phases of noise, an expert each (Phased DMD)",
            "Phased DMD: Few-step Distribution Matching Distillation via Score Matching within Subintervals", "2510.27684", 2025,
            "teacher, one student expert and one critic per phase",
        ),
        _generator(
            "hyper-sd", "Trajectory segmented consistency, rewards, one-step score distillation (Hyper-SD)",
            "Hyper-SD: Trajectory Segmented Consistency Model for Efficient Image Synthesis", "2404.13686", 2024,
            "teacher, student, average, its stages (+ critic, discriminator heads)", aliases=("hypersd", "tscd"), data="needed",
        ),
        _generator(
            "rcm", "Continuous-time consistency with score regularisation (rCM, sCM)",
            "Large Scale Diffusion Distillation via Score-Regularized Continuous-Time Consistency", "2510.08431", 2025,
            "teacher, student, critic (sCM: no critic)", aliases=("scm",), data="needed (none for its DMD term alone)",
        ),
        _generator(
            "ict", "Consistency training (iCT, CT, ECT) and distillation (CD)",
            "Improved Techniques for Training Consistency Models", "2310.14189", 2023, "student (+ target, teacher)",
            aliases=("ct", "cd", "ect"), data="needed", null="no",
        ),
        _generator(
            "pso", "Preferences for few-step students (PSO)",
            "Tuning Timestep-Distilled Diffusion Model Using Pairwise Sample Optimization", "2410.03190", 2024,
            "student (adapters on the reference's weights)", data="optional (offline forms)", null="no",
        ),
        _generator(
            "compose", "Any score rule x producer x guidance x adversary (no system of its own)", "", "", 0,
            "teacher, student, critic (+ discriminator heads)", data="optional (GAN)", input_gradients=True,
        ),
        Entry(
            "gaussian-score", "Analytical teleportation with the Gaussian score",
            "The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models and its Applications",
            "2412.09726", 2024, "", "teacher", aliases=("teleport", "teleportation"), data="statistics", null="no",
        ),
        Entry(
            "lsd", "Learnable sampler distillation of discrete diffusion (LSD, LSD+)",
            "Learnable Sampler Distillation for Discrete Diffusion Models", "2509.19962", 2025, "limbeck.methods.sequences.lsd",
            "teacher; the student is its sampler's 2 M numbers", aliases=("lsd+",), null="no", wing="sequences",
            fits=("symbols",),
        ),
        Entry(
            "alm", "Cross-tokenizer distillation by likelihoods of chunks (ALM)",
            "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching", "2503.20083", 2025,
            "limbeck.methods.sequences.alm", "teacher, student (+ projector)", aliases=("cross-tokenizer",), data="texts",
            null="no", wing="sequences", extra="llm", packages=("transformers", "tokenizers"), fits=("language",),
        ),
        _classifier(
            "pld", "Plackett-Luce distillation of classifiers (PLD)",
            "PLD: A Choice-Theoretic List-Wise Knowledge Distillation", "2506.12542", 2025, "teacher (or its logits), student",
            aliases=("plackett-luce",),
        ),
        _classifier(
            "self-distillation", "Self-distillation with a weight of the labels, in closed form and in rounds",
            "Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by Self-Distillation",
            "2102.13088", 2021, "student, the last round's student", aliases=("born-again",),
        ),
        _scene(
            "prolificdreamer", "Variational score distillation into scenes (ProlificDreamer)",
            "ProlificDreamer: High-Fidelity and Diverse Text-to-3D Generation with Variational Score Distillation", "2305.16213",
            2023, "teacher, scenes (+ critic: teacher with adapters, or a network of its own)", aliases=("vsd", "sds-3d"),
        ),
        _scene(
            "esd", "Entropic score distillation: views that must differ (ESD)",
            "Taming Mode Collapse in Score Distillation for Text-to-3D Generation", "2401.00909", 2024,
            "teacher, scenes (+ critic: teacher with adapters, or a network of its own)", aliases=("entropic", "janus"),
        ),
        Entry(
            "ff-g2m", "Full-frequency distillation of a graph network into a perceptron (FF-G2M, GLNN)",
            "Extracting Low-/High- Frequency Knowledge from Graph Neural Networks and Injecting it into MLPs: "
            "An Effective GNN-to-MLP Distillation Framework", "2305.10758", 2023, "limbeck.methods.structures.ff_g2m",
            "student; the teacher's logits", aliases=("ffg2m", "glnn"), data="a graph", null="no", wing="structures",
            extra="graph", packages=("torch_geometric",),
        ),
        Entry(
            "imdn", "Super-resolution by information multi-distillation (IMDN, IMDN_AS)",
            "Lightweight Image Super-Resolution with Information Multi-distillation Network", "1909.11856", 2019,
            "limbeck.methods.restoration.imdn", "student", aliases=("information-multi-distillation",), data="needed", null="no",
            wing="restoration", extra="restoration", packages=("skimage",),
        ),
    )
}  # fmt: skip
