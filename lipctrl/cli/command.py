"""Find the verb, parse its options, run it, and turn whatever happens into one exit code."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import json
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence

import lipctrl
from lipctrl.certificates.checker.graph import GraphError
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.cli.console import Console
from lipctrl.cli.verb import Outcome, Verb
from lipctrl.core.errors import InputError, LipctrlError

#: Words after ``lipctrl``: where the verb's class is, and what it does.
VERBS = {
    "quickstart": ("quickstart:Quickstart", "demonstrations, policy, proofs and report, in one go"),
    "demos collect": ("demos:Collect", "record an expert's episodes"),
    "demos show": ("demos:Show", "say what recorded episodes hold, and what they allow"),
    "train bc": ("train:BehaviourCloning", "fit a Lipschitz policy to demonstrations"),
    "train dagger": ("train:Dagger", "let the policy act and the expert correct it, in rounds"),
    "simulate": ("simulate:Simulate", "run a policy or an expert, and film it"),
    "lipschitz": ("lipschitz:Lipschitz", "prove an upper bound of a network's Lipschitz constant"),
    "stability": ("stability:Stability", "prove that a policy stabilises a plant, and from where"),
    "check": ("check:Check", "verify certificates"),
    "report": ("report:Report", "make the pictures and the report of a run"),
    "doctor": ("doctor:Doctor", "test this installation"),
}
OPTIONS = "Every verb takes --help, --json, --seed and --out."
CODES = "Exit codes: 0 done or holds, 1 does not hold, 2 wrong usage or input, 3 unknown within the budget, 130 interrupted."


class Usage(LipctrlError):
    """A command line that cannot be understood."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lipctrl`` with these words (by default the process's own) and return the exit code."""
    try:
        return _main(argv)
    except BrokenPipeError:  # the reader went away, as in `lipctrl --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    started = time.perf_counter()
    as_json = "--json" in words
    name = " ".join(words[:1])
    try:
        if words[:1] == ["--version"]:
            print(f"lipctrl {lipctrl.__version__}")
            return 0
        name = _verb_name(words)
        if name not in VERBS:
            print(_overview(name))
            return 0
        verb = _parse(name, words[len(name.split()) :])
    except SystemExit as stop:  # help was shown
        return int(stop.code or 0)
    except Usage as error:
        return _fail(name, str(error), as_json, started)
    return _run(name, verb, started)


def _verb_name(words: Sequence[str]) -> str:
    """The verb that the words begin with, or the group ("" for all) whose overview is wanted. Raises Usage."""
    name = ""
    for word in words:
        if word in ("-h", "--help"):
            return name
        longer = f"{name} {word}".strip()
        if longer in VERBS:
            return longer
        below = [verb.removeprefix(name).split()[0] for verb in VERBS if verb.startswith(name)]
        if word not in below:
            near = difflib.get_close_matches(word, below, 1)
            hint = f"perhaps you meant {near[0]}" if near else f"expected one of {', '.join(dict.fromkeys(below))}"
            raise Usage(f"unknown verb {longer!r}: {hint}")
        name = longer
    raise Usage(f"a verb is missing: see lipctrl {name} --help".replace("  ", " "))


def _overview(group: str) -> str:
    chosen = {name: text for name, (_, text) in VERBS.items() if name.startswith(group)}
    width = max(map(len, chosen)) + 2
    lines = [f"usage: lipctrl {group or 'VERB'} ...".replace("  ", " "), ""]
    lines += [f"  {name:{width}}{text}" for name, text in chosen.items()]
    return "\n".join([*lines, "", OPTIONS, CODES, "", f"example:\n  lipctrl {next(iter(chosen))} --help"])


def _parse(name: str, words: Sequence[str]) -> Verb:
    """The verb with its options. Raises SystemExit(0) after showing help, Usage where the options do not fit."""
    import tyro

    module, attribute = VERBS[name][0].split(":")
    verb: type[Verb] = getattr(importlib.import_module(f"lipctrl.cli.{module}"), attribute)
    summary = inspect.cleandoc(verb.__doc__ or "")
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(verb, prog=f"lipctrl {name}", description=f"{summary}\n\nexample:\n{verb.EXAMPLE}", args=words, config=config)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise Usage(f"{_sentence(said.getvalue())} (see lipctrl {name} --help)") from None


def _sentence(box: str) -> str:
    """The first sentence in one of tyro's boxes, without the lines around it."""
    lines = [re.sub(r"[│╭╮╰╯─]+", "", line).strip() for line in box.splitlines()[1:]]
    text = " ".join(line for line in lines if line)
    text = re.split(r"\s*(?:Argument helptext:|For full helptext|Are you|in lipctrl )", text)[0]
    return re.sub(r" Perhaps you meant: (--[\w-]+).*", r"; perhaps you meant \1", text).strip() or "wrong usage"


def _run(name: str, verb: Verb, started: float) -> int:
    """Run the verb; whatever happens becomes an exit code, one sentence, and a JSON object where it was asked for."""
    try:
        if verb.seed < 0:
            raise InputError(f"the seed is {verb.seed}, expected 0 or more")
        with _only_json(verb.json), _plain_warnings():
            outcome = verb.run(Console())
    except KeyboardInterrupt:
        outcome = Outcome((), status="unknown", keys={"message": "interrupted"}, interrupted=True)
        print("\ninterrupted: what was finished is kept, the same command goes on from there", file=sys.stderr)
    except (LipctrlError, Rejected, GraphError) as error:
        return _fail(name, str(error), verb.json, started, verb.traceback)
    except OSError as error:
        return _fail(name, f"{error.filename or 'the system'}: {error.strerror or error}", verb.json, started, verb.traceback)
    except Exception as error:
        text = f"unexpected {type(error).__name__}: {error}" + ("" if verb.traceback else "; run it again with --traceback to see where")
        return _fail(name, text, verb.json, started, verb.traceback)
    if verb.json:
        print(json.dumps(outcome.to_json(name.partition(" ")[0], time.perf_counter() - started), allow_nan=False))
    else:
        print("\n".join(outcome.lines))
    return outcome.exit_code


def _fail(name: str, message: str, as_json: bool, started: float, show_traceback: bool = False) -> int:
    if show_traceback:
        traceback.print_exc()
    message = " ".join(message.split())
    print(f"lipctrl: {message}", file=sys.stderr)
    if as_json:
        outcome = Outcome((), status="error", keys={"message": message})
        print(json.dumps(outcome.to_json(name.partition(" ")[0], time.perf_counter() - started), allow_nan=False))
    return 2


@contextlib.contextmanager
def _only_json(wanted: bool) -> Iterator[None]:
    """Send what libraries print on standard output, C libraries included, to standard error."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show each warning as one sentence."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: Console().warn(str(message))
        yield
