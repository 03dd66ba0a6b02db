"""The coordinator's chart. Helm renders it where it is installed; elsewhere the part of its language that the templates use is
filled in here, so that the result can at least be read."""

import json
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sgps.settings import dump, parse
from sgps_server.config import Federation

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "sgps-server"
RELEASE = "derm"
_ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}")


def typed(value: Any) -> Any:
    """Text of a YAML scalar as Helm would type it: numbers and truth values."""
    if isinstance(value, dict):
        return {k: typed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [typed(v) for v in value]
    if value in {"true", "false"}:
        return value == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def values(**changes: Any) -> dict[str, Any]:
    text = (CHART / "values.yaml").read_text().replace("{}", "{ }")
    found = typed(parse(text, "values.yaml"))
    found["image"]["tag"] = "0.2.0"
    for place, value in changes.items():
        *path, last = place.split("__")
        inner = found
        for key in path:
            inner = inner[key]
        inner[last] = value
    return dict(found)


def looked_up(expression: str, data: dict[str, Any]) -> Any:
    if expression == ".Release.Name":
        return data["release"]
    assert expression.startswith(".Values."), f"{expression}: not in the part of the language that the chart keeps to"
    found: Any = data
    for key in expression.removeprefix(".Values.").split("."):
        found = found[key]
    return found


def evaluated(action: str, data: dict[str, Any]) -> str:
    first, *pipes = [part.strip() for part in action.split("|")]
    word, *arguments = first.split()
    if word == "printf":
        assert arguments[0] == '"%s:%s"'
        value: Any = ":".join(looked_up(a, data) for a in arguments[1:])
    elif word in {"toJson", "toYaml"}:
        found = looked_up(arguments[0], data)
        value = json.dumps(found) if word == "toJson" else dump(found).rstrip("\n")
    else:
        value = looked_up(first, data)
    for pipe in pipes:
        if pipe == "quote":
            value = json.dumps(str(value))
        elif pipe == "sha256sum":
            value = "0" * 64
        else:
            name, width = pipe.split()
            assert name == "indent"
            value = textwrap.indent(value, " " * int(width))
    return str(value)


def rendered(template: Path, data: dict[str, Any], release: str = RELEASE) -> str:
    """Lines of `if` and `end` stand alone; everything else is filled in where it stands."""
    data = {**data, "release": release}
    out, shown = [], [True]
    for line in template.read_text().splitlines():
        alone = _ACTION.fullmatch(line.strip())
        if alone and alone[2].startswith("if "):
            shown.append(shown[-1] and bool(looked_up(alone[2].removeprefix("if "), data)))
        elif alone and alone[2] == "end":
            shown.pop()
        elif shown[-1]:
            out.append(_ACTION.sub(lambda m: evaluated(m[2], data), line))
    assert shown == [True], f"{template.name}: if and end do not match"
    return "\n".join(out)


def resources(data: dict[str, Any]) -> dict[str, Any]:
    """kind -> object, all scalars as text."""
    texts = {p.name: rendered(p, data) for p in sorted((CHART / "templates").glob("*.yaml"))}
    found = [parse(text, name) for name, text in texts.items() if text.strip()]
    return {r["kind"]: r for r in found}


def plain(data: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, scalar) of everything in an object."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from plain(value, f"{place}.{key}")
    elif isinstance(data, list):
        for value in data:
            yield from plain(value, f"{place}[]")
    else:
        yield place, data


def test_what_kubernetes_takes_as_text_is_text() -> None:
    """A name of digits would be read as a number; so would some hashes."""
    for template in (CHART / "templates").glob("*.yaml"):
        text = rendered(template, values(federation__name="123"), release="123")
        data = yaml.safe_load(text)  # noqa: TID251  as Kubernetes types it, not as our settings are read
        for place, value in plain(data):
            if re.search(r"name$|Name$|instance$|labels|annotations|env|\.data|Class|storage$", place):
                assert isinstance(value, str), f"{template.name} {place}: {value!r}"


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_the_objects_fit_the_schemas_of_kubernetes(version: str) -> None:
    for template in (CHART / "templates").glob("*.yaml"):
        made = yaml.safe_load(rendered(template, values()))  # noqa: TID251  as above
        kubernetes_validate.validate(made, version, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**made, "spcc": {}}, version, strict=True)


def test_the_templates_fill_in_to_yaml_that_names_each_object_once() -> None:
    found = resources(values())
    assert set(found) == {"ConfigMap", "Service", "NetworkPolicy", "StatefulSet"}
    assert {r["metadata"]["name"] for r in found.values()} == {RELEASE}
    labels = found["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for chosen in (
        found["Service"]["spec"]["selector"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        found["StatefulSet"]["spec"]["selector"]["matchLabels"],
    ):
        assert chosen == labels


@pytest.mark.parametrize("changes", [{}, {"federation__code": ["a" * 64], "federation__rounds": 3}])
def test_the_coordinator_takes_the_settings_that_the_chart_writes(changes: dict[str, Any]) -> None:
    text = resources(values(**changes))["ConfigMap"]["data"]["federation.yaml"]
    federation = Federation.model_validate(parse(text, "federation.yaml"))
    assert federation.rounds == changes.get("federation__rounds", 1)
    assert set(parse(text, "federation.yaml")) | {"code", "episodes"} == set(Federation.model_fields), (
        "every key is a value"
    )


def test_the_pod_can_do_little() -> None:
    pod = resources(values())["StatefulSet"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] == "false"
    assert pod["securityContext"]["runAsNonRoot"] == "true" and pod["securityContext"]["runAsUser"] == "10001"
    for container in pod["initContainers"] + pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": "false", "readOnlyRootFilesystem": "true", "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert container["image"] == "sgps-server:0.2.0"
        assert {m["name"] for m in container["volumeMounts"]} <= {"data", "settings", "tmp"}


def test_one_coordinator_and_two_ways_in() -> None:
    found = resources(values())
    assert found["StatefulSet"]["spec"]["replicas"] == "1"
    policy = found["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"] and policy["egress"] == []
    (container,) = found["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    opened = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert opened == {"sites": "8443", "releases": "8444"}
    assert set(opened) == {port["targetPort"] for port in found["Service"]["spec"]["ports"]}
    assert set(opened) == {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert "NetworkPolicy" not in resources(values(networkPolicy__enabled=False))


def test_a_storage_class_is_named_only_where_it_is_given() -> None:
    def claim(**changes: Any) -> dict[str, Any]:
        (found,) = resources(values(**changes))["StatefulSet"]["spec"]["volumeClaimTemplates"]
        return dict(found["spec"])

    assert "storageClassName" not in claim()
    assert claim(storage__className="fast")["storageClassName"] == "fast"


def places(schema: dict[str, Any], place: str = "") -> Iterator[str]:
    for name, inner in schema.get("properties", {}).items():
        yield place + name
        yield from places(inner, f"{place}{name}.")


def test_the_schema_of_the_values_knows_every_value_and_every_setting() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(places(schema))

    def check(data: Any, part: dict[str, Any], place: str) -> None:
        for name, value in data.items():
            assert name in part["properties"], f"{place}{name}: not in the schema"
            inner = part["properties"][name]
            kinds = {
                "object": dict,
                "array": list,
                "string": str,
                "integer": int,
                "number": (int, float),
                "boolean": bool,
            }
            if "type" in inner:
                assert isinstance(value, kinds[inner["type"]]), f"{place}{name}: {value!r}"
            if "pattern" in inner:
                assert re.search(inner["pattern"], value)
            if isinstance(value, dict) and "properties" in inner:
                check(value, inner, f"{place}{name}.")
        assert set(part["required"]) <= set(data)

    check(values(), schema, "")
    assert {f"federation.{name}" for name in Federation.model_fields} <= known


def test_chart_and_project_have_one_version() -> None:
    chart = parse((CHART / "Chart.yaml").read_text(), "Chart.yaml")
    project = (CHART.parents[2] / "pyproject.toml").read_text()
    assert f'\nversion = "{chart["version"]}"\n' in project and chart["appVersion"] == chart["version"]


@pytest.mark.parametrize("command", ["lint", "template"])
def test_helm_takes_the_chart(command: str) -> None:
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("needs helm, which is not installed here: the chart was not rendered by it")
    line = [helm, command, *([RELEASE] if command == "template" else []), CHART]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
