"""The errors a user can mend; ``str(error)`` is what the user sees."""

import difflib
import re
from typing import Any, Iterable, Optional, Pattern, Sequence

# Characters that would do something to a terminal, or to the order in which text is read: control
# characters (of 7 and of 8 bits) but for line feeds and tabs, separators and marks of direction of
# Unicode, halves of surrogate pairs (bytes of a file's name that are no UTF-8).
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# So many problems of one place are listed.
MOST_PROBLEMS = 20


def printable(text: str, allowed: Optional[Pattern[str]] = None) -> str:
    """Escape what must not reach a terminal; whatever a command shows passes here.

    Args:
        text: of whatever origin: a file, a checkpoint, a plugin's name, a puzzle.
        allowed: sequences that are left as they are, such as the colours of a drawing.

    Returns:
        The text, in which such characters are written as ``\\x1b`` or ``\\u202e``.
    """
    if _UNPRINTABLE.search(text) is None:
        return text
    if allowed is None:
        return _UNPRINTABLE.sub(_escaped, text)
    found, place = [], 0
    for match in allowed.finditer(text):
        found += [_UNPRINTABLE.sub(_escaped, text[place : match.start()]), match.group()]
        place = match.end()
    return "".join([*found, _UNPRINTABLE.sub(_escaped, text[place:])])


def _escaped(match: "re.Match[str]") -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class TRMError(Exception):
    """Base of every error that the user can mend; commands turn it into exit code 2."""

    def __str__(self) -> str:
        """Give the message; text of files that it quotes cannot do anything to a terminal."""
        return printable(super().__str__())


class ConfigError(TRMError):
    """A configuration, an override or an argument that cannot be used."""

    @classmethod
    def from_problems(cls, where: str, problems: Sequence[str]) -> "ConfigError":
        """Put all problems of one place into one error.

        Args:
            where: what they were found in, such as a file's name.
            problems: one line each, at least one.

        Returns:
            The error: ``WHERE: problem``, or a heading line and one indented line per problem, of
            many the first ones only.
        """
        if len(problems) == 1:
            return cls(f"{where}: {problems[0]}")
        first = listed(problems, MOST_PROBLEMS, "\n  ")
        return cls(f"{where} has {len(problems)} problems:\n  {first}")


class DataError(TRMError):
    """Puzzles or data files that cannot be read or make no sense."""


class DamagedError(DataError):
    """A file that was read, and whose content is not what it should be.

    What can be made again is made again. A file that could not be read may be all right.
    """


class CheckpointError(TRMError):
    """A checkpoint or run folder that is missing, broken, or of another shape."""


class UnreadableError(CheckpointError):
    """A checkpoint that the machine does not give just now; it may be whole.

    Only damage is a reason to take an older one.
    """


class NonFiniteError(TRMError):
    """The loss or a gradient of a step is not finite; nothing has been updated.

    Attributes:
        step: the step that could not be taken.
        parts: what entered it, a list of :class:`mlx_trm.training.step.Part`.
    """

    def __init__(
        self, step: int, parts: Sequence[Any], replay: str = "", in_a_row: int = 0
    ) -> None:
        """Keep what entered the step, and name the file that holds it where it was saved.

        Args:
            step, parts: the attributes.
            replay: name of the file, where it was saved.
            in_a_row: steps that were skipped before the run gave up, this one included.
        """
        saved = f"; {replay} has what entered it, and the state before it is saved"
        what = "the loss or a gradient is not finite any more"
        advice = "or go on with train.on_nonfinite=skip"
        if in_a_row:
            what = f"the loss or a gradient was not finite in {in_a_row} steps in a row"
            advice = "or begin again from an earlier checkpoint"
        super().__init__(
            f"step {step}: {what}; lower train.lr, use model.forward_dtype=float32, {advice}"
            + (saved if replay else "")
        )
        self.step = step
        self.parts = list(parts)


LESS_MEMORY = (
    "a smaller batch size helps: lower train.micro_batch_size (training) or eval.batch_size "
    "(evaluation), neither changes what is learnt, or set train.checkpoint_activations=true"
)
# What MLX's backends report, by words of the message; the first that is found counts.
_DEVICE_PROBLEMS = (
    (
        r"innocentvictim|submissionsignored",
        "another program's work has stopped the GPU",
        "end that program and start again; a run goes on with --resume",
    ),
    (
        r"errortimeout|gpu timeout|impactinginteractivity|impacting interactivity|errorhang|"
        r"launch ?timed ?out|errorlaunchtimeout",
        "the system has ended work that kept the GPU busy for too long",
        LESS_MEMORY + "; close what draws on the screen meanwhile",
    ),
    (
        r"no kernel image|nokernelimage|no_binary_for_gpu|unsupported toolchain|unsupportedptx|"
        r"insufficient ?driver|driver version is insufficient|unsupported display driver|"
        r"systemdrivermismatch|invalid_ptx|unsupported gpu architecture",
        "this build of MLX has no code for this GPU or its driver",
        "update the driver, install the other one of mlx-trm[cuda13] and mlx-trm[cuda12], or use "
        "--device cpu",
    ),
    (
        r"no cuda-capable device|errornodevice|devicesunavailable|device\(s\) is/are busy|"
        r"invalid device ordinal|errorinvaliddevice|systemnotready|cuda.*initialization error",
        "no GPU can be used",
        "look at nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu",
    ),
    (
        r"out ?of ?memory|insufficient memory|memoryallocation|alloc_failed|unable to allocate|"
        r"bad_alloc|cannot allocate|maximum allowed buffer|resource limit|\[metal::malloc\]|"
        r"\[malloc|cudamalloc",
        "out of memory",
        LESS_MEMORY,
    ),
    (
        r"metallib|metal library|failed to load device|unable to load kernel|unable to load funct",
        "MLX's Metal code cannot be loaded",
        "pip install --upgrade --force-reinstall mlx mlx-metal; it needs macOS 14 or newer",
    ),
    (
        r"compile::eval_cpu|failed to compile|temp_directory_path|cannot create director",
        "MLX cannot compile",
        "use train.compile=never, or install g++ and let TMPDIR name a folder that can be written",
    ),
    (
        r"illegal memory access|illegaladdress|launch failure|launchfailure|misaligned|\becc\b|"
        r"eccuncorrectable|hardware ?stack|device-side assert|illegal instruction|pagefault",
        "the GPU has stopped in the middle of its work",
        "start again (a run goes on with --resume); where it happens again set "
        "MLX_TRM_CUDA_KERNELS=0, and look at the GPU",
    ),
    (
        r"nccl",
        "the GPUs cannot reach each other",
        "see docs/distributed.md; NCCL_DEBUG=INFO says more",
    ),
    (
        r"cuda ?error|\bcu(da|blas|dnn|fft|rand|solver)\w* ?\(.*failed|cuda_error|cudaerror|cublas|"
        r"cudnn|nvrtc|command buffer|\[metal|kiogpu|command encoder",
        "the GPU has reported an error",
        "look at python -m mlx_trm.diagnose, lower the batch, or use --device cpu",
    ),
)


def describe_device_problem(error: BaseException) -> str:
    """Say what the user can do about an error of MLX's backends: memory, the driver, the GPU.

    Args:
        error: of whatever kind.

    Returns:
        One line with the backend's own words; an empty string where the error is none of theirs.
    """
    if isinstance(error, MemoryError):
        return f"out of memory ({_named(error)}); {LESS_MEMORY}"
    if not isinstance(error, (RuntimeError, SystemError)):
        return ""
    text = str(error).lower()
    for words, what, advice in _DEVICE_PROBLEMS:
        if re.search(words, text):
            return f"{what} ({_named(error)}); {advice}"
    return ""


def _named(error: BaseException) -> str:
    """Give an error's kind and what it says."""
    kind = type(error).__name__
    return f"{kind}: {printable(describe_error(error))}" if str(error) else kind


def describe_error(error: BaseException) -> str:
    """Say in one line, of at most 200 characters, what an error says."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def shown(text: object, most: int = 80) -> str:
    """Make a text of a file fit to be printed: one line, no control characters, not too long.

    Args:
        text: such as a weight's name; what is no text is turned into one.
        most: characters, at least 4.

    Returns:
        ASCII, in which other characters are escaped; the end of what is too long becomes ``...``.
    """
    escaped = str(text).encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= most else escaped[: most - 3] + "..."


def listed(items: Sequence[str], most: int = 12, separator: str = "; ") -> str:
    """List the first of many.

    Args:
        items: of any number.
        most: so many are listed.
        separator: put between them.

    Returns:
        Such as ``a; b; and 3 more``.
    """
    rest = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *rest])


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Suggest the known word that is closest to a mistyped one.

    Args:
        word: what was given.
        known: what would have been right.
        prefix: put before the suggestion, such as a section and a dot.

    Returns:
        ``"; did you mean 'X'?"``, or an empty string where nothing is close.
    """
    close = close_match(word, known)
    return "" if close is None else f"; did you mean {prefix + close!r}?"


def close_match(word: str, known: Iterable[str]) -> Optional[str]:
    """Give the known word that is closest to a mistyped one; None where nothing is close."""
    by_case = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(by_case), n=1)
    return by_case[close[0]] if close else None
