"""What ``nemo llm distill`` does with its command line, beyond nemo_run's own run context."""

import contextlib
import functools
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import nemo_run as run
from nemo_run.cli.api import RunContext, RunContextError
from nemo_run.cli.cli_parser import CLIException, ParseError
from nemo_run.cli.config import ConfigSerializer
from nemo_run.cli.lazy import LazyEntrypoint

from nemo_xtoken.commands.cli import refusal, report_error
from nemo_xtoken.commands.run_config import add_named, config_from_dict, expand_home, plain
from nemo_xtoken.commands.run_header import describe_run
from nemo_xtoken.commands.run_settings import check_call
from nemo_xtoken.commands.teacher_nodes import TeacherNodes
from nemo_xtoken.commands.terminal import Terminal, wants_verbose
from nemo_xtoken.environment import find_stack
from nemo_xtoken.errors import InputError, nearest
from nemo_xtoken.file_errors import check_target
from nemo_xtoken.launch.connections import choose_connections
from nemo_xtoken.launch.job import distillation, read_sweep
from nemo_xtoken.launch.ranks import adopt_slurm_ranks, check_accelerator, fit_trainer
from nemo_xtoken.launch.sbatch import unset_names
from nemo_xtoken.launch.slurm_config import PREFIX, load_config
from nemo_xtoken.launch.teacher_steps import split_words
from nemo_xtoken.launch.unfinished import report_unfinished
from nemo_xtoken.preflight.fitting import lay_out_here, settle_precision
from nemo_xtoken.recipes import available_recipes, describe_recipes
from nemo_xtoken.run.arguments.kinds import why_not
from nemo_xtoken.run.arguments.names import argument_at, check_content
from nemo_xtoken.run.arguments.short_names import in_full
from nemo_xtoken.run.arguments.trusted_names import check_content_trusted
from nemo_xtoken.run.run_checks import check_settings
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.sides import processes_of
from nemo_xtoken.run.yaml_file import read_yaml
from nemo_xtoken.training.stopped import INTERRUPTED

__all__ = ["RecipeRunContext"]

logger = logging.getLogger(__name__)


class RecipeRunContext(RunContext):
    """Adds to nemo_run's run context:

    - ``--recipe NAME`` (also ``NAME(argument=value)``), the same as ``--factory`` but checked, and ``--list-recipes``;
    - ``--executor slurm``, with ``slurm=FILE``, ``executor.KEY=VALUE`` and ``sweep=FILE``, submits the run;
    - under ``srun`` and ``torchrun``, the trainer has the nodes and devices that the job has;
    - ``--yaml`` reads what ``--to-yaml`` wrote, exactly, whatever function the recipe configures, and names no code
      from outside without ``trust=true``;
    - no question but before a run is submitted, and there none where standard input is not a terminal;
    - an unknown option is refused, not ignored; wrong input is one message and exit status 2; other failures show
      their traceback and give exit status 1.
    """

    known_options: ClassVar[list[str]] = []
    terminal: ClassVar[Terminal]  # of the command; a process has one
    import_output: ClassVar[str] = ""  # what others printed while they were imported; for the log
    factory: str | Callable[[], Any] | None  # of nemo_run's: a name, or what it stands for
    yaml: str | None
    trusted: bool = False  # code that the file of --yaml names may run
    slurm_words: list[str] | None = None  # what a job on Slurm is configured by; None for a run right here
    _title: str = ""  # the recipe or the file
    _settings: Settings  # of the run, once it is parsed
    _chosen: str = ""  # of its layout and precision, in words

    @classmethod
    def cli_command(cls, *args: Any, **kwargs: Any) -> Any:
        """Registers the command as nemo_run does, and notes its options for error messages."""
        command = super().cli_command(*args, **kwargs)
        defaults = (parameter.default for parameter in inspect.signature(command).parameters.values())
        declared = " ".join(text for default in defaults for text in getattr(default, "param_decls", None) or ())
        cls.known_options = sorted({*re.findall(r"--[\w-]+", declared), "--executor", "--recipe", "--list-recipes"})
        parent = args[0] if args else kwargs["parent"]
        parent.registered_commands[-1].callback = _with_terminal(command)
        return command

    def cli_execute(
        self, fn: Callable[..., Any], args: list[str], entrypoint_type: Literal["task", "experiment"] = "task"
    ) -> None:
        """Runs the command; ``args`` holds what the command's own options left, in their order."""
        with self.terminal.released():
            try:
                super().cli_execute(fn, self._take_options(list(args)), entrypoint_type)
            except (InputError, _Refused) as error:
                report_error(str(error))
                raise SystemExit(2) from None
            except RunContextError as error:
                report_error(str(error))
                raise SystemExit(1) from None
            except KeyboardInterrupt:
                report_error("interrupted")
                raise SystemExit(INTERRUPTED) from None
            except Exception as error:  # nemo_run would show the message alone
                problem = refusal(error, "this run")
                if problem is None:
                    self.terminal.unexpected(error)
                    raise SystemExit(1) from error
                logger.debug("refused", exc_info=error)
                report_error(str(problem))
                raise SystemExit(2) from None

    def _execute_task(self, fn: Callable[..., Any], task_args: list[str]) -> None:
        """Runs the configured run here, exports it, or submits it."""
        export = self.to_yaml or self.to_toml or self.to_json
        for option, target in (("--to-yaml", self.to_yaml), ("--to-toml", self.to_toml), ("--to-json", self.to_json)):
            if target:
                check_target(option, str(target).partition(":")[0])
        if self.slurm_words is not None and not export:
            self._submit(fn, task_args)
            return
        shown = export or self.dryrun or self.repl
        with report_unfinished(), contextlib.nullcontext() if shown else self.terminal.captured():
            if self.terminal.rank == 0 or export:
                super()._execute_task(fn, task_args)
                if (log := self.terminal.log) is not None:
                    self.terminal.say(f"log         {log}")
            elif not self.dryrun:  # the first rank shows the configuration
                configured = self.parse_fn(fn, task_args)
                self._introduce()
                run.run(configured, direct=True)

    def _submit(self, fn: Callable[..., Any], overrides: list[str]) -> None:
        """Submits the run to Slurm, after parsing it, which finds errors before the job does."""
        from nemo_xtoken.launch.executors import submit

        nodes, of_teacher, given = split_words([*(self.slurm_words or ()), *overrides])
        settings = [word for word in given if word.startswith(PREFIX)]
        words = dict(word.split("=", 1) for word in given if word.startswith(("slurm=", "sweep=")))
        overrides = [word for word in given if word not in settings and not word.startswith(("slurm=", "sweep="))]
        config = load_config(words.get("slurm"), settings)
        sweep = read_sweep(words["sweep"]) if "sweep" in words else []
        recipe, yaml = (self.factory if isinstance(self.factory, str) else None), self.yaml
        teacher = None
        if nodes is not None:
            theirs = TeacherNodes(words.get("slurm", "default"), settings, of_teacher, nodes)
            teacher, overrides, sweep = theirs.steps(config, recipe, yaml, overrides, sweep)
        job = distillation(config, recipe, yaml, overrides, sweep)
        runs = []
        for task in sweep or [[]]:
            self.factory, self.yaml = recipe, yaml  # parse_fn replaces them by what it read
            self.parse_fn(fn, [*overrides, *task])
            runs.append(self._settings)
        connections = choose_connections(config, settings, runs)
        config = connections.config
        if connections.said:
            logger.log(logging.INFO if connections.overlaps else logging.WARNING, connections.said)
        for name in unset_names(config):
            logger.warning("%s is in pass_env and not set in this shell: the job will not have it", name)
        if self.dryrun or self._should_continue(self.skip_confirmation):
            submit(config, job, self.dryrun, self.tail_logs, teacher)

    def parse_fn(self, fn: Any, args: list[str], **default_kwargs: Any) -> Any:
        """The configured run: from the recipe, or from the file of ``--yaml``, with the overrides applied."""
        if isinstance(self.factory or self.yaml, str):
            self._title = str(self.factory or self.yaml)
        exported = self._exported()
        if exported is not None:
            self.factory, self.yaml = (lambda: exported), None
        given = exported
        parser_log = logging.getLogger("nemo_run.cli.cli_parser")  # it prints the whole configuration before it raises
        level = parser_log.level
        parser_log.setLevel(logging.CRITICAL)
        try:
            if self.factory and given is None:
                with self.terminal.captured():
                    given = LazyEntrypoint(fn, factory=self.factory).resolve(ctx=self)
                self.factory = lambda: given
            if given is not None:
                if "trust" not in inspect.signature(given.__fn_or_cls__).parameters:  # then it concerns the file alone
                    args = [word for word in args if not word.startswith("trust=")]
                args = self._judged(given, args)
                add_named(given, [*args, *(path for path, _ in self._values_in_yaml())])
            with self.terminal.captured():  # what the imports of a recipe print, also where the run is only shown
                config = super().parse_fn(fn, args, **default_kwargs)
            fit_trainer(config, args, os.environ)
            here = self.slurm_words is None and not (self.to_yaml or self.to_toml or self.to_json)
            if here and isinstance(self.executor, run.LocalExecutor | None):
                expand_home(config)
            self._settings = Settings(plain(config), "the command line")
            if here:
                chosen = lay_out_here(config, self._settings), settle_precision(config, self._settings)
                self._chosen = "; ".join(filter(None, chosen))
            if given is not None:
                check_settings(self._settings, None if self.slurm_words is not None else processes_of(self._settings))
            shown = self.to_yaml or self.to_toml or self.to_json or self.dryrun or self.repl
            if self.slurm_words is None and not shown:
                check_accelerator(config)
            return config
        except CLIException as error:
            chain = [error, *_causes(error)]
            inner = [e for e in chain if isinstance(e, CLIException)][-1]
            if type(inner) is CLIException and inner.__cause__ is not None:
                raise inner.__cause__ from None  # raised by a recipe or a factory
            _leave(_readable(inner, args))
        finally:
            parser_log.setLevel(level)

    def _judged(self, given: Any, args: Sequence[str]) -> list[str]:
        """The overrides, names and kinds checked; a single text for a list of texts becomes a list, as elsewhere."""
        settings = Settings(plain(given), "the command line")
        args = [in_full(settings.content, word) for word in args]
        for path, value in self._values_in_yaml():
            argument = argument_at(settings.content, path, f"{path} in {self.yaml}")
            expected = why_not(value, argument.kind) if argument is not None else None
            if expected is not None and not (value is None and argument is not None and argument.default is None):
                raise InputError(f"{path}={value!r} in {self.yaml}", expected, "correct it")
        words = []
        for word in args:
            value = settings.judged(word) if "=" in word else None
            name, _, text = word.partition("=")
            listed = isinstance(value, list) and not text.lstrip('"').startswith("[")
            words.append(f"{name}={value!r}" if listed else word)
        return words

    def _should_continue(self, skip_confirmation: bool) -> bool:
        if self.slurm_words is None:
            self._introduce()
        here = self.slurm_words is None and self.executor is None
        with self.terminal.released():
            return super()._should_continue(skip_confirmation or here or not sys.stdin.isatty())

    def _introduce(self) -> None:
        """Says what will run, and where its log goes."""
        folder = self._settings.run_folder
        log = None if folder is None else self.terminal.log_to(folder)
        print(find_stack().line())
        self.terminal.say(describe_run(self._title, self._settings, log, self._chosen))

    def _take_options(self, args: list[str]) -> list[str]:
        """Takes our options out, checks the rest, and returns the overrides."""
        rest: list[str] = []
        words = iter(args)
        recipe, executor = None, ""
        for word in words:
            if word == "--list-recipes":
                print(describe_recipes())
                raise SystemExit(0)
            if word == "--recipe":
                recipe = next(words, "")
            elif word.startswith("--recipe="):
                recipe = word.partition("=")[2]
            elif word == "--executor":
                executor = next(words, "")
            elif word.startswith(("--executor=", "executor=")):
                executor = word.partition("=")[2]
            elif word.startswith("-"):
                hint = nearest(word.partition("=")[0], self.known_options)
                _leave(f"there is no option {word!r}{hint}\n  the options: {' '.join(self.known_options)}")
            elif "=" not in word:
                _leave(f"{word!r} is no override: write key=value, for instance trainer.max_steps=20")
            else:
                rest.append(word)
        self.trusted = [w.partition("=")[2].lower() for w in rest if w.startswith("trust=")][-1:] in (["true"], ["1"])
        rest = self._take_executor(executor, rest)
        if recipe is not None:
            if self.factory:
                _leave("--recipe and --factory are given, which are the same: leave one out")
            _check_recipe(recipe)
            self.factory = recipe
        if not (self.factory or self.yaml or rest):
            _leave(f"name a recipe: nemo llm distill --recipe NAME\n  the recipes:\n{describe_recipes()}")
        return rest

    def _take_executor(self, executor: str, words: list[str]) -> list[str]:
        """Takes what configures the executor out of the overrides; executors other than ours are nemo_run's."""
        ours = [word for word in words if word.startswith(("slurm=", "sweep=", PREFIX))]
        if executor == "slurm":
            self.slurm_words = ours
        elif executor:
            return [f"run.executor={executor}", *(f"run.{w}" if w.startswith(PREFIX) else w for w in words)]
        elif ours:
            _leave(f"{ours[0]} without an executor: add --executor slurm")
        return [word for word in words if word not in ours]

    def parse_executor(self, name: str, *args: str) -> Any:
        """nemo_run's own executors, by the names of their factories."""
        try:
            return super().parse_executor(name, *args)
        except ValueError:
            _leave(f"there is no executor {name!r}{nearest(name, ['slurm'])}: slurm, or a factory that nemo_run knows")

    def _exported(self) -> run.Partial | None:
        """The run in the file of ``--yaml`` when that holds a whole one, as ``--to-yaml`` writes it."""
        if not isinstance(self.yaml, str):
            return None
        if not Path(self.yaml).is_file():
            raise InputError(f"no file {self.yaml}", "a file written by --to-yaml", "fix the path after --yaml")
        try:
            content = _content(self.yaml)
        except InputError:
            raise
        except Exception as error:  # each format has its own
            raise InputError(
                f"{self.yaml} cannot be read ({error})", "a .yaml, .json or .toml file", "see the place named"
            ) from error
        if not isinstance(content, dict):
            what = "nothing" if content is None else f"a {type(content).__name__}"
            raise InputError(
                f"{self.yaml} holds {what}",
                "a run, as --to-yaml writes it, or names of its arguments and their values",
                "write a line such as `trainer: {max_steps: 20}`",
            )
        whole = "_target_" in content
        if not self.trusted and not (whole and self.factory):
            check_content_trusted(content, self.yaml)
        if not whole:
            return None  # single values, which nemo_run applies to the recipe
        for problem in check_content(content):
            raise problem
        if self.factory:
            raise InputError(
                f"{self.yaml} holds a whole run, and a recipe is named as well", "one of the two", "leave --recipe out"
            )
        return config_from_dict({**content, "_partial_": True}, self.yaml, self.trusted)

    def _values_in_yaml(self) -> list[tuple[str, Any]]:
        """The single values in the file of ``--yaml``, by their names on the command line."""
        content = _content(self.yaml) if isinstance(self.yaml, str) else {}

        def values(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
            if isinstance(value, dict):
                for key, inner in value.items():
                    yield from values(inner, f"{prefix}.{key}" if prefix else str(key))
            else:
                yield prefix, value

        return list(values(content, ""))


def _content(path: str) -> Any:
    """Of a file in YAML, JSON (which is YAML) or TOML."""
    return read_yaml(Path(path)) if path.endswith((".yaml", ".yml", ".json")) else ConfigSerializer().load_dict(path)


def _adopt_ranks() -> None:
    try:
        adopt_slurm_ranks(os.environ)
    except InputError as error:
        report_error(str(error))
        raise SystemExit(2) from None


def _with_terminal(command: Callable[..., None]) -> Callable[..., None]:
    """nemo_run's command, run within our `Terminal`."""

    @functools.wraps(command)
    def run_command(**options: Any) -> None:
        _adopt_ranks()
        verbose = bool(options.get("verbose")) or wants_verbose([], os.environ)
        with Terminal(verbose) as terminal, terminal.captured():
            if RecipeRunContext.import_output and not verbose:
                print(RecipeRunContext.import_output)
            RecipeRunContext.terminal = terminal
            command(**options)

    return run_command


class _Refused(Exception):
    """A command line that is refused; the text is for the user."""


def _leave(message: str) -> NoReturn:
    raise _Refused(message)


def _causes(error: BaseException) -> Iterator[BaseException]:
    while error.__cause__ is not None:
        error = error.__cause__
        yield error


def _check_recipe(text: str) -> None:
    """Leaves with the list of recipes unless ``text`` is ``NAME`` or ``NAME(..)`` of one."""
    recipes = available_recipes()
    name = text.partition("(")[0]
    if name not in recipes:
        found = f"there is no recipe {name!r}{nearest(name, recipes)}" if name else "--recipe needs a name"
        _leave(f"{found}\n  the recipes:\n{describe_recipes(recipes)}")
    check_call(recipes[name], text)


def _readable(error: CLIException, overrides: Sequence[str]) -> str:
    """nemo_run's message without the dump of the whole configuration that follows it."""
    if not isinstance(error, ParseError):
        return str(error).partition(" (Argument:")[0] + f"\n  in: {error.arg}"
    override = next((o for o in overrides if o.partition("=")[2] == error.value), error.value)
    wanted = getattr(error.expected_type, "__name__", error.expected_type)
    return f"{override}: {error.reason} ({wanted} is expected)"
