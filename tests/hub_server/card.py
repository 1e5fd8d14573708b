"""The metadata of a README: reading it, and rules that approximate those of the Hub.

The Hub checks a card's YAML when it is pushed and refuses some cards. Its rules are not published as code; these were
written from its documentation, from the model card specification (huggingface/hub-docs, modelcard.md) and from error
messages that users have reported. They catch the mistakes that are known to be refused. A card that passes here can
still be refused by the Hub, and the wording of the messages may differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from tests.hub_server.vocabulary import BASE_MODEL_RELATIONS, LICENSES, PIPELINE_TAGS

_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_REPO_ID = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
_MISSING = object()


class _Loader(yaml.SafeLoader):
    """YAML as the Hub's JavaScript reads it: `no` is a word, 1e-4 is a number, a key may not come twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicated mapping key: {key}", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    "-+.0123456789",
)


def front_matter(readme: str) -> dict[str, Any] | None:
    """The YAML block at the top of a README; None if there is none.

    Raises:
        ValueError: If the block is not YAML, or is not a mapping.
    """
    match = _FRONT_MATTER.match(readme)
    if match is None or not match.group(1).strip():
        return None
    try:
        data = yaml.load(match.group(1), Loader=_Loader)  # a safe loader
    except yaml.YAMLError as error:
        raise ValueError(f"Invalid YAML in the metadata section: {error}") from None
    if data is None:
        return None
    if not isinstance(data, dict):
        raise ValueError("The metadata section must be a YAML mapping")
    return data


@dataclass
class Verdict:
    """What is wrong with a card: errors refuse the push, warnings do not."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def json(self) -> dict[str, list[dict[str, str]]]:
        """In the form of the `/api/validate-yaml` answer."""
        return {
            "errors": [{"message": message} for message in self.errors],
            "warnings": [{"message": message} for message in self.warnings],
        }


def check_card(readme: str, kind: str = "models") -> Verdict:
    """Apply the rules to a README of a model or data set repository (`kind` as in the API's paths)."""
    verdict = Verdict()
    try:
        data = front_matter(readme)
    except ValueError as error:
        verdict.errors.append(str(error))
        return verdict
    if data is None:
        verdict.warnings.append("empty or missing yaml metadata in repo card")
        return verdict
    rules = _Rules(data, verdict)
    rules.common()
    if kind == "models":
        rules.model()
    elif kind == "datasets":
        rules.dataset()
    return verdict


class _Rules:
    """The rules, collecting messages as the Hub words them."""

    def __init__(self, data: dict[str, Any], verdict: Verdict) -> None:
        self.data, self.errors, self.warnings = data, verdict.errors, verdict.warnings

    def common(self) -> None:
        for path, value in self._strings("license", one_allowed=True):
            if value not in LICENSES:
                self.errors.append(f'"{path}" must be one of [{", ".join(sorted(LICENSES))}]')
        for path, value in self._strings("language", one_allowed=True):
            if not _LANGUAGE.fullmatch(value):
                self.errors.append(
                    f'"{path}" with value "{value}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code '
                    '(two/three letters), or a special value like "code", "multilingual".'
                )
        self._strings("tags")
        self._text(self.data, "license_name", "license_name")
        self._text(self.data, "license_link", "license_link")
        link = self.data.get("license_link")
        if isinstance(link, str) and not re.fullmatch(r"LICENSE(\.md)?|https?://\S+", link):
            self.errors.append('"license_link" must be LICENSE, LICENSE.md or a URL')

    def model(self) -> None:
        self._text(self.data, "library_name", "library_name")
        self._text(self.data, "pipeline_tag", "pipeline_tag")
        self._text(self.data, "thumbnail", "thumbnail")
        tag = self.data.get("pipeline_tag")
        if isinstance(tag, str) and tag not in PIPELINE_TAGS:
            known = ", ".join(sorted(PIPELINE_TAGS))
            self.warnings.append(f'The pipeline tag "{tag}" is not in the official list: {known}')
        self._strings("metrics")
        for path, value in self._strings("datasets", one_allowed=True):
            if not _REPO_ID.fullmatch(value):
                self.errors.append(
                    f'"{path}" with value "{value}" is not valid. If possible, use a dataset id from https://hf.co/datasets.'
                )
        for path, value in self._strings("base_model", one_allowed=True):
            if not _REPO_ID.fullmatch(value):
                self.errors.append(
                    f'"{path}" with value "{value}" is not valid. Use a model id from https://hf.co/models.'
                )
        relation = self.data.get("base_model_relation", BASE_MODEL_RELATIONS[0])
        if relation not in BASE_MODEL_RELATIONS:
            self.errors.append(f'"base_model_relation" must be one of [{", ".join(BASE_MODEL_RELATIONS)}]')
        if "model-index" in self.data:
            self._model_index(self.data["model-index"])

    def dataset(self) -> None:
        self._text(self.data, "pretty_name", "pretty_name")
        for key in ("task_categories", "size_categories"):
            for path, value in self._strings(key):
                if key == "task_categories" and value not in PIPELINE_TAGS:
                    self.warnings.append(f'The task "{value}" in "{path}" is not in the official list')
        for path, config in self._items(self.data, "configs", "configs"):
            self._text(config, "config_name", f"{path}.config_name", required=True)

    def _model_index(self, index: Any) -> None:
        for path, model in self._items({"model-index": index}, "model-index", "model-index"):
            self._text(model, "name", f"{path}.name", required=True)
            for result_path, result in self._items(model, "results", f"{path}.results", required=True):
                task = self._mapping(result, "task", f"{result_path}.task")
                self._text(task, "type", f"{result_path}.task.type", required=task is not None)
                self._text(task, "name", f"{result_path}.task.name")
                dataset = self._mapping(result, "dataset", f"{result_path}.dataset")
                for key in ("type", "name"):
                    self._text(dataset, key, f"{result_path}.dataset.{key}", required=dataset is not None)
                for key in ("config", "split", "revision"):
                    self._text(dataset, key, f"{result_path}.dataset.{key}")
                for metric_path, metric in self._items(result, "metrics", f"{result_path}.metrics", required=True):
                    self._metric(metric, metric_path)
                if "source" in result:
                    source = self._mapping(result, "source", f"{result_path}.source")
                    self._text(source, "url", f"{result_path}.source.url", required=source is not None)

    def _metric(self, metric: dict[str, Any], path: str) -> None:
        self._text(metric, "type", f"{path}.type", required=True)
        self._text(metric, "name", f"{path}.name")
        value = metric.get("value", _MISSING)
        if value is _MISSING or value is None:
            self.errors.append(f'"{path}.value" is required')
        elif isinstance(value, float) and value - value != 0:
            self.errors.append(f'"{path}.value" must be a finite number')

    def _strings(self, key: str, one_allowed: bool = False) -> list[tuple[str, str]]:
        """The strings under `key` with their paths; complains about anything else there."""
        value = self.data.get(key)
        if value is None:
            return []
        if isinstance(value, str) and one_allowed:
            return [(key, value)]
        if not isinstance(value, list):
            self.errors.append(f'"{key}" must be {"a string or an array" if one_allowed else "an array"}')
            return []
        paths = [(f"{key}[{place}]", item) for place, item in enumerate(value)]
        self.errors.extend(f'"{path}" must be a string' for path, item in paths if not isinstance(item, str))
        return [(path, item) for path, item in paths if isinstance(item, str)]

    def _text(self, parent: Any, key: str, path: str, required: bool = False) -> None:
        value = parent.get(key, _MISSING) if isinstance(parent, dict) else _MISSING
        if value is _MISSING:
            if required:
                self.errors.append(f'"{path}" is required')
        elif not isinstance(value, str):
            self.errors.append(f'"{path}" must be a string')

    def _mapping(self, parent: dict[str, Any], key: str, path: str) -> dict[str, Any] | None:
        value = parent.get(key)
        if isinstance(value, dict):
            return value
        self.errors.append(f'"{path}" {"is required" if value is None else "must be of type object"}')
        return None

    def _items(self, parent: Any, key: str, path: str, required: bool = False) -> list[tuple[str, dict[str, Any]]]:
        """The mappings in the list under `key`, with their paths."""
        value = parent.get(key)
        if value is None and not required:
            return []
        if not isinstance(value, list):
            self.errors.append(f'"{path}" {"is required" if value is None else "must be an array"}')
            return []
        paths = [(f"{path}[{place}]", item) for place, item in enumerate(value)]
        self.errors.extend(f'"{where}" must be of type object' for where, item in paths if not isinstance(item, dict))
        return [(where, item) for where, item in paths if isinstance(item, dict)]
