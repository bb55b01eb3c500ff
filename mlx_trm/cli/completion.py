"""Completion for bash and zsh, written out of the parsers: ``mlx-trm completion bash``."""

import argparse
import importlib
import shlex
import sys
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from mlx_trm.cli.arguments import Parser
from mlx_trm.cli.commands import COMMANDS
from mlx_trm.config.loading import LAYOUT, packaged_configs

SHELLS = ("bash", "zsh")
USAGE = (
    "usage: mlx-trm completion {bash,zsh}\n\n"
    "Prints what completes the commands, options and settings of mlx-trm:\n"
    '  bash: eval "$(mlx-trm completion bash)"   in .bashrc\n'
    '  zsh:  eval "$(mlx-trm completion zsh)"    in .zshrc, below compinit\n'
)
# What stands for the value of an option whose values are files.
_FILES = "@files"
_FILE_WORDS = ("FILE", "DIR", "RUN", "PATH")


class Words(NamedTuple):
    """What may follow a command, or a command and its sub-command.

    Attributes:
        actions: its sub-commands.
        options: what may follow each option: values, :data:`_FILES` for files, or, where the option
            takes a value of which nothing is known, an empty text; None: it takes no value.
        settings: that may follow, each with its ``=``.
    """

    actions: Tuple[str, ...]
    options: Dict[str, Optional[Tuple[str, ...]]]
    settings: Tuple[str, ...]


def complete(words: List[str]) -> int:
    """Print the completion of a shell.

    Args:
        words: what follows ``completion`` on the line.

    Returns:
        The exit code: 2 where no shell is named.
    """
    if words in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if len(words) != 1 or words[0] not in SHELLS:
        sys.stderr.write(f"completion: name one shell: {' or '.join(SHELLS)}\n")
        return 2
    print(bash_script() if words[0] == "bash" else zsh_script(), end="")
    return 0


def words_of(parser: Parser) -> Words:
    """Read out of a parser what may stand on its line."""
    actions: Tuple[str, ...] = ()
    options: Dict[str, Optional[Tuple[str, ...]]] = {}
    for action in parser._actions:  # pylint: disable=protected-access
        if isinstance(action.choices, dict):
            actions = tuple(action.choices)
        for option in action.option_strings:
            options[option] = _values(action)
    settings: Tuple[str, ...] = ()
    if parser.get_default("takes_overrides"):
        every = parser.get_default("any_setting") is not False
        settings = tuple(f"{name}=" for name in (LAYOUT.settings() if every else ["plugins"]))
    return Words(actions, options, settings)


def _values(action: argparse.Action) -> Optional[Tuple[str, ...]]:
    if action.nargs == 0:
        return None
    if "--config" in action.option_strings:
        return (*packaged_configs(), _FILES)
    if action.choices:
        return tuple(map(str, action.choices))
    return (_FILES,) if action.type is Path or action.metavar in _FILE_WORDS else ("",)


def all_words() -> Iterator[Tuple[str, str, Words]]:
    """Yield each command, with each of its sub-commands or an empty text, and what may follow."""
    for command in COMMANDS:
        parser: Parser = importlib.import_module(f"mlx_trm.{command}").main.parser()
        yield command, "", words_of(parser)
        for action in parser._actions:  # pylint: disable=protected-access
            if isinstance(action.choices, dict):
                for name, inner in action.choices.items():
                    yield command, name, words_of(inner)


def bash_script() -> str:
    """Write the completion for bash 3.2 and newer."""
    subs, after, lists = [], [], []
    for command, action, words in all_words():
        if words.actions:
            subs.append(f"        {command}) actions='{' '.join(words.actions)}' ;;")
        for option, values in words.options.items():
            if values is not None:
                known = " ".join(value for value in values if value not in ("", _FILES))
                after.append(f"        {command}:{action}:{option}) words='{known}' ;;")
        lists.append(
            f"        {command}:{action}) options='{' '.join(words.options)}'\n"
            f"            settings='{' '.join(words.settings)}' ;;"
        )
    # An empty answer makes bash offer files, by `-o default`.
    return f"""\
# Completes mlx-trm in bash; written by: mlx-trm completion bash
_mlx_trm() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}"
    local command="${{COMP_WORDS[1]}}" action= actions= options= settings= words=none word
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W '{' '.join((*COMMANDS, 'completion'))}' -- "$cur"))
        return
    fi
    case "$command" in
        completion) COMPREPLY=($(compgen -W '{' '.join(SHELLS)}' -- "$cur")); return ;;
{_lines(subs)}
    esac
    for word in "${{COMP_WORDS[@]:2:COMP_CWORD-2}}"; do
        case " $actions " in *" $word "*) action="$word" ;; esac
    done
    case "$command:$action:$prev" in
{_lines(after)}
    esac
    if [ "$words" != none ]; then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
        return
    fi
    case "$command:$action" in
{_lines(lists)}
    esac
    case "$cur" in
        -*) words="$options" ;;
        "") words= ;;
        *) words="$settings" ;;
    esac
    [ -n "$action" ] || words="$words $actions"
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    case "${{COMPREPLY[0]}}" in *=) compopt -o nospace 2>/dev/null ;; esac
}}
complete -o default -F _mlx_trm mlx-trm
"""


def zsh_script() -> str:
    """Write the completion for zsh 5."""
    commands = [f"{name}:{summary}" for name, summary in COMMANDS.items()]
    commands.append("completion:print what completes these words in a shell")
    subs, after, lists = [], [], []
    for command, action, words in all_words():
        if words.actions:
            subs.append(f"        {command}) actions=({' '.join(words.actions)}) ;;")
        for option, values in words.options.items():
            if values is not None:
                known = " ".join(value for value in values if value not in ("", _FILES))
                does = [f"compadd -- {known}"] if known else []
                does += ["_files"] if _FILES in values else []
                does = does or ["_message value"]
                after.append(f"        {command}:{action}:{option}) {'; '.join(does)}; return ;;")
        lists.append(
            f"        {command}:{action}) options=({' '.join(words.options)})\n"
            f"            settings=({' '.join(words.settings)}) ;;"
        )
    return f"""\
#compdef mlx-trm
# Completes mlx-trm in zsh; written by: mlx-trm completion zsh
_mlx_trm() {{
    local command=$words[2] action= word
    local -a commands actions options settings
    if (( CURRENT == 2 )); then
        commands=(
{_lines([f"            {shlex.quote(line)}" for line in commands])}
        )
        _describe command commands
        return
    fi
    case $command in
        completion) compadd -- {' '.join(SHELLS)}; return ;;
{_lines(subs)}
    esac
    for word in ${{words[3,CURRENT-1]}}; do
        (( ${{actions[(Ie)$word]}} )) && action=$word
    done
    case $command:$action:$words[CURRENT-1] in
{_lines(after)}
    esac
    case $command:$action in
{_lines(lists)}
    esac
    if [[ $PREFIX == -* ]]; then
        compadd -- $options
        return
    fi
    [[ -z $action ]] && (( $#actions )) && compadd -- $actions
    [[ -n $PREFIX ]] && compadd -S '' -- $settings
    _files
}}
if [[ $funcstack[1] == _mlx_trm ]]; then
    _mlx_trm "$@"
else
    compdef _mlx_trm mlx-trm
fi
"""


def _lines(lines: List[str]) -> str:
    return "\n".join(lines)
