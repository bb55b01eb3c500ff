"""Puts a configuration together: values, overrides, plugins, and a check of everything.

Which sections there are is said by :data:`mlx_trm.config.loading.LAYOUT`; nothing here knows them.
"""

from dataclasses import dataclass, is_dataclass
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Type

from mlx_trm.config.checks import (
    JOINT,
    NAME,
    UNKNOWN,
    VALUE,
    Problem,
    check_fields,
    check_together,
    section_fields,
    show,
)
from mlx_trm.config.plugins import Importer, import_plugins
from mlx_trm.config.registry import Registry
from mlx_trm.errors import MOST_PROBLEMS, ConfigError, close_match, did_you_mean


@dataclass(frozen=True)
class Layout:
    """The shape of a configuration.

    Attributes:
        root: dataclass of the whole; its fields are the sections, the top-level settings, and
            ``given``, which gets the names of the settings that are no defaults.
        sections: dataclass of each section; a base class where the section has a registry.
        registries: sections whose setting ``name`` chooses the dataclass.
        renamed: settings under foreign names, and what they are called here.
    """

    root: Type[Any]
    sections: Mapping[str, Type[Any]]
    registries: Mapping[str, Registry]
    renamed: Mapping[str, str]

    def resolve(
        self,
        values: Any,
        where: str,
        overrides: Sequence[str] = (),
        duplicates: Sequence[str] = (),
        importer: Importer = import_plugins,
    ) -> Any:
        """Check everything and build the root dataclass.

        Args:
            values: nested dicts, as read from a file.
            where: what messages call it.
            overrides: such as ``train.lr=3e-4``.
            duplicates: problems that reading the file has found already.
            importer: imports the plugins that ``values`` name; those of an override are the user's.

        Raises:
            ConfigError: with every problem, one line each.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: expected sections such as 'train:', not {show(values)}")
        found = [Problem(UNKNOWN, "line", line) for line in duplicates]
        settings = self._split(values, found)
        overridden = self._override(settings, overrides, found)
        built, wrong = check_fields(
            self.root, settings, "", lenient=True, skip=tuple(self.sections)
        )
        found += wrong
        try:
            (import_plugins if "plugins" in overridden else importer)(built.get("plugins", []))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        classes: Dict[str, Optional[Type[Any]]] = dict(self.sections)
        for kind in self.registries:
            classes[kind] = self._chosen_class(kind, settings[kind], found)
        found += self._unknown_keys(settings, classes)
        for section, cls in classes.items():
            if cls is not None:
                self._build(section, cls, settings[section], built, found)
        config = None
        if set(self.sections) <= set(built) and not any(p.rank == VALUE for p in found):
            given = [f"{part}.{name}" for part in self.sections for name in settings[part]]
            config = self.root(**built, given=frozenset(given))
            found += check_together(config, "")
        _report(where, found, overridden)
        return config

    def validate(self, config: Any) -> None:
        """Check an instance of the root dataclass.

        Raises:
            ConfigError: with every problem, one line each.
        """
        found: List[Problem] = []
        for section, base in self.sections.items():
            part = getattr(config, section)
            if not isinstance(part, base):
                text = f"{section}: expected a {base.__name__}, not {type(part).__name__}"
                found.append(Problem(VALUE, section, text))
                continue
            if section in self.registries:
                self._chosen_class(section, vars(part), found)
            wrong = check_fields(type(part), vars(part), section)[1]
            found += wrong or check_together(part, section)
        found += check_fields(self.root, vars(config), "", skip=tuple(self.sections))[1]
        if not any(problem.rank == VALUE for problem in found):
            found += check_together(config, "")
        _report("configuration", found, set())

    def _split(self, values: Mapping[Any, Any], found: List[Problem]) -> Dict[str, Any]:
        """Copy the values, so that every section is there and is a dict."""
        settings: Dict[str, Any] = {name: {} for name in self.sections}
        for key, value in values.items():
            if key not in self.sections:
                settings[str(key)] = value
            elif isinstance(value, Mapping):
                settings[key] = {str(name): item for name, item in value.items()}
            elif value is not None:  # a section with nothing in it has its defaults
                text = f"{key}: expected a section of settings, not {show(value)}"
                found.append(Problem(VALUE, key, text))
        return settings

    def _override(
        self, settings: Dict[str, Any], overrides: Sequence[str], found: List[Problem]
    ) -> Set[str]:
        """Put overrides into the settings; give their keys."""
        from mlx_trm.config.strict_yaml import parse_scalar

        keys = set()
        for item in [overrides] if isinstance(overrides, str) else overrides:
            key, equals, text = (part.strip() for part in item.partition("="))
            section, _, name = key.partition(".")
            keys.add(key)
            if not key:
                text = f"{item!r}: the name before '=' is missing"
                found.append(Problem(VALUE, key, text))
            elif key in self.sections:
                first = next(iter(section_fields(self.sections[key])))
                text = f"{key}: is a section; set one of its fields, such as {key}.{first}=..."
                found.append(Problem(VALUE, key, text))
            elif not equals:
                found.append(Problem(VALUE, key, f"{item!r}: '=' is missing; write {key}=VALUE"))
            elif section in self.sections and name:
                settings[section][name] = parse_scalar(text)
            else:
                settings[key] = parse_scalar(text)
        return keys

    def _chosen_class(
        self, kind: str, values: Mapping[str, Any], found: List[Problem]
    ) -> Optional[Type[Any]]:
        """Look up the dataclass that the setting ``name`` of a section chooses."""
        name = values.get("name")
        key = f"{kind}.name"
        if name is None:
            known = ", ".join(self.registries[kind].names())
            found.append(Problem(NAME, key, f"{key}: is missing (known: {known})"))
        elif not isinstance(name, str):
            found.append(Problem(NAME, key, f"{key}: expected text, not {show(name)}"))
        else:
            try:
                return self.registries[kind].get(name).config_class
            except ConfigError as error:
                found.append(Problem(NAME, key, f"{key}: {error}"))
        return None

    def _build(
        self,
        section: str,
        cls: Type[Any],
        values: Mapping[str, Any],
        built: Dict[str, Any],
        found: List[Problem],
    ) -> None:
        """Build a section's dataclass, or report why not."""
        given, wrong = check_fields(cls, values, section, lenient=True)
        found += wrong
        if wrong:
            return
        try:
            part = cls(**given)
        except ValueError as error:  # from a __post_init__
            found.append(Problem(JOINT, "", f"{section}: {error}"))
            return
        found += check_together(part, section)
        built[section] = part

    def _unknown_keys(
        self, settings: Mapping[str, Any], classes: Mapping[str, Optional[Type[Any]]]
    ) -> List[Problem]:
        """Report keys that no section knows, each with the most likely right one."""
        known = {"": list(section_fields(self.root))}
        for section, cls in classes.items():
            known[section] = list(section_fields(cls or self.sections[section]))
        full_names = [f"{s}.{name}" if s else name for s, names in known.items() for name in names]
        found: List[Problem] = []
        for section, names in known.items():
            if section and classes[section] is None:  # which keys it may have is not known
                continue
            for key in settings[section] if section else settings:
                if key not in names:
                    full = f"{section}.{key}" if section else key
                    hint = ""
                    if len(found) < MOST_PROBLEMS:  # no more are shown, and guessing takes time
                        hint = self._elsewhere(section, key, settings)
                        hint = hint or self._right_key(section, key, names, full_names)
                    found.append(Problem(UNKNOWN, full, f"unknown key {full!r}{hint}"))
        return found

    def settings(self) -> List[str]:
        """List the dotted names of all settings, those of every task and model among them."""
        known = dict.fromkeys(
            name for name in section_fields(self.root) if name not in self.sections
        )
        for section, cls in self.sections.items():
            classes = [cls]
            if section in self.registries:
                registry = self.registries[section]
                classes += [registry.get(name).config_class for name in registry.names()]
            names = [f"{section}.{name}" for each in classes for name in section_fields(each)]
            known.update(dict.fromkeys(names))
        return list(known)

    def find_settings(self, word: str) -> List[str]:
        """Find the settings that somebody may mean by a word that is none.

        Args:
            word: such as ``lr``, ``train.lr``, ``batch-size``, or a foreign name of a setting.

        Returns:
            Dotted names of those that are called so in any section, of whatever task or model, else
            of those that are called something close; none where nothing is close.
        """
        word = word.strip("-").replace("-", "_")
        settings = self.settings()
        exact = [name for name in settings if word in (name, name.rpartition(".")[2])]
        if not exact and word in self.renamed:
            exact = [self.renamed[word]]
        if exact:
            return exact
        if "." in word:
            close = close_match(word, settings)
            return [close] if close else []
        last = close_match(word, [name.rpartition(".")[2] for name in settings])
        return [name for name in settings if last and name.rpartition(".")[2] == last]

    def _elsewhere(self, section: str, key: str, settings: Mapping[str, Any]) -> str:
        """Say which other tasks or models know a key; an empty string where none does."""
        if section not in self.registries:
            return ""
        registry = self.registries[section]
        names = [n for n in registry.names() if key in section_fields(registry.get(n).config_class)]
        if not names:
            return ""
        chosen = f"{section} {settings[section]['name']!r}"
        return f"; {chosen} has no such setting ({', '.join(map(repr, names))} has)"

    def _right_key(
        self, section: str, key: str, names: Sequence[str], full_names: Sequence[str]
    ) -> str:
        """Guess what an unknown key should have been; an empty string where nothing is likely."""
        last = key.rpartition(".")[2]
        exact = [full for full in full_names if full.rpartition(".")[2] == last]
        if last in self.renamed or exact:
            return f"; did you mean {self.renamed.get(last) or exact[0]!r}?"
        if not section and "." in key:
            return did_you_mean(key, full_names)
        own = did_you_mean(key, names, prefix=f"{section}." if section else "")
        return own or did_you_mean(last, full_names)


def given_settings(config: Any) -> FrozenSet[str]:
    """Give the settings of sections that a file or an override names; the others are defaults.

    Args:
        config: of :meth:`Layout.resolve`. Of one built in Python every setting counts as given.
    """
    if config.given is not None:
        return frozenset(config.given)
    return frozenset(
        f"{section}.{name}"
        for section, part in vars(config).items()
        if is_dataclass(part)
        for name in section_fields(type(part))
    )


def _report(where: str, found: Sequence[Problem], overridden: Set[str]) -> None:
    """Raise an error that lists all problems, if there are any."""
    if not found:
        return
    blamed = {problem.key in overridden for problem in found if problem.key}
    joint = any(not problem.key for problem in found)
    if blamed == {True} and not joint:
        where = f"{where} (overrides)"
    elif True in blamed or (joint and overridden):
        where = f"{where} (with overrides)"
    ordered = sorted(found, key=lambda problem: problem.rank)
    raise ConfigError.from_problems(where, [problem.text for problem in ordered])
