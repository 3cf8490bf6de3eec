"""Shell completion scripts, generated from the argparse parsers: what they complete is what the commands take."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from intseg import models

_NAMED = {"-w": models.names, "--weights": models.names}
"""Options whose value may be one of some names, or a file."""

_NOT_FILES = ("N", "X", "ID", "MS", "LSB")
"""Metavars of values that are not file names."""


@dataclass(frozen=True)
class Option:
    """An option of a command.

    flags   its spellings
    help    one line
    values  what its value may be; empty for anything
    files   whether its value may be a file name
    takes   whether it takes a value
    """

    flags: tuple[str, ...]
    help: str
    values: tuple[str, ...]
    files: bool
    takes: bool


@dataclass(frozen=True)
class Command:
    """A command: its one-line help, options, and what its positional arguments may be."""

    name: str
    help: str
    options: tuple[Option, ...]
    words: tuple[str, ...]


def commands(parser: argparse.ArgumentParser) -> tuple[Command, ...]:
    """The commands of a parser with subparsers, in their order."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            return tuple(_command(name, helps.get(name, ""), sub) for name, sub in action.choices.items())
    return ()


def _command(name: str, text: str, parser: argparse.ArgumentParser) -> Command:
    options = [_option(action) for action in parser._actions if action.option_strings]
    words = [str(w) for action in parser._actions if not action.option_strings for w in action.choices or ()]
    return Command(name, text, tuple(options), tuple(words))


def _option(action: argparse.Action) -> Option:
    named = next((_NAMED[flag]() for flag in action.option_strings if flag in _NAMED), ())
    choices = tuple(str(choice) for choice in action.choices or ())
    takes = action.nargs != 0
    files = takes and not choices and str(action.metavar or action.dest) not in _NOT_FILES
    text = " ".join((action.help or "").split()).replace("%%", "%")
    return Option(tuple(action.option_strings), text, choices or tuple(named), files, takes)


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of a program for "bash", "zsh" or "fish"."""
    scripts: dict[str, Callable[[str, tuple[Command, ...]], Iterator[str]]] = {
        "bash": _bash,
        "zsh": _zsh,
        "fish": _fish,
    }
    return "".join(f"{line}\n" for line in scripts[shell](parser.prog, commands(parser)))


def _bash(program: str, found: tuple[Command, ...]) -> Iterator[str]:
    yield f"_{program}() {{"
    yield "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words='' files=''"
    yield "    COMPREPLY=()"
    yield '    if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f"        words='{' '.join(c.name for c in found)} --help --version'"
    yield "    else"
    yield '        case "${COMP_WORDS[1]} $prev" in'
    for command in found:
        for option in command.options:
            if option.takes:
                patterns = "|".join(f"'{command.name} {flag}'" for flag in option.flags)
                files = "1" if option.files else ""
                yield f"            {patterns}) words='{' '.join(option.values)}' files={files} ;;"
    yield "            *) files=1"
    for command in found:
        if command.words:
            yield f'                [ "${{COMP_WORDS[1]}}" != {command.name} ] || files='
    yield '                case "${COMP_WORDS[1]}" in'
    for command in found:
        flags = " ".join(flag for option in command.options for flag in option.flags)
        yield f"                    {command.name}) words='{' '.join([*command.words, flags])}' ;;"
    yield "                esac"
    yield '                [ "${cur#-}" = "$cur" ] || files='
    yield '                [ -n "$cur" ] || words="${words%%-*}" ;;'
    yield "        esac"
    yield "    fi"
    yield '    [ -z "$files" ] || mapfile -t COMPREPLY < <(compgen -f -- "$cur")'
    yield '    [ -z "$words" ] || mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -W "$words" -- "$cur")'
    yield "}"
    yield f"complete -o filenames -F _{program} {program}"


def _zsh(program: str, found: tuple[Command, ...]) -> Iterator[str]:
    yield f"#compdef {program}"
    yield f"_{program}() {{"
    yield "    local context state state_descr line"
    yield "    typeset -A opt_args"
    yield "    if (( CURRENT == 2 )); then"
    yield "        local -a names=(" + " ".join(_quoted(f"{c.name}:{c.help}") for c in found) + ")"
    yield "        _describe command names"
    yield "        return"
    yield "    fi"
    yield "    local name=$words[2]"
    yield '    words=("${(@)words[2,-1]}")'
    yield "    (( CURRENT-- ))"
    yield "    case $name in"
    for command in found:
        specs = [_zsh_option(option, flag) for option in command.options for flag in option.flags]
        specs.append(_quoted(f"*:argument:({' '.join(command.words)})" if command.words else "*:file:_files"))
        yield f"        {command.name}) _arguments " + " ".join(specs) + " ;;"
    yield "    esac"
    yield "}"
    yield f"compdef _{program} {program}"


def _zsh_option(option: Option, flag: str) -> str:
    text = option.help.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    if not option.takes:
        return _quoted(f"{flag}[{text}]")
    if option.values and option.files:
        return _quoted(f"{flag}[{text}]:value:{{compadd -- {' '.join(option.values)}; _files}}")
    action = f"({' '.join(option.values)})" if option.values else "_files" if option.files else " "
    return _quoted(f"{flag}[{text}]:value:{action}")


def _fish(program: str, found: tuple[Command, ...]) -> Iterator[str]:
    top = f"complete -c {program} -f -n __fish_use_subcommand"
    yield from (f"{top} -a {command.name} -d {_fish_quoted(command.help)}" for command in found)
    for command in found:
        start = f"complete -c {program} -n '__fish_seen_subcommand_from {command.name}'"
        if command.words:
            yield f"{start} -f -a '{' '.join(command.words)}'"
        for option in command.options:
            flags = " ".join(f"-l {f[2:]}" if f.startswith("--") else f"-s {f[1:]}" for f in option.flags)
            value = "" if not option.takes else " -r" + ("" if option.files else " -f")
            choices = f" -a '{' '.join(option.values)}'" if option.values else ""
            yield f"{start} {flags}{value}{choices} -d {_fish_quoted(option.help)}"


def _quoted(text: str) -> str:
    return shlex.quote(text)


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
