"""Who may see and change what: wrong, missing, read-only and other people's tokens; private repositories."""

import json

import pytest

from tests.hub_server.accounts import Accounts
from tests.hub_server.fixtures import OTHER_TOKEN, READ_TOKEN, WRITE_TOKEN, hub, run_with_hub  # noqa: F401

_SCRIPT = f"""
import json
from huggingface_hub import HfApi
facts = {{}}

def tried(call, *args, **kwargs):
    try:
        return ["fine", call(*args, **kwargs) and ""]
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None), str(error)]

ada, reader, bob = HfApi(token="{WRITE_TOKEN}"), HfApi(token="{READ_TOKEN}"), HfApi(token="{OTHER_TOKEN}")
wrong, nobody = HfApi(token="hf_no_such_token"), HfApi(token=False)
people = dict(ada=ada, reader=reader, bob=bob, wrong=wrong, nobody=nobody)
file = dict(path_in_repo="x.txt", path_or_fileobj=b"x")

ada.create_repo("ada/open")
ada.create_repo("ada/hidden", private=True)
ada.create_repo("lab/shared", private=True)
ada.upload_file(repo_id="ada/hidden", **file)
for name, api in people.items():
    facts[name] = {{
        "who": tried(api.whoami),
        "create": tried(api.create_repo, f"ada/by-{{name}}"),
        "see open": tried(api.model_info, "ada/open"),
        "see hidden": tried(api.model_info, "ada/hidden"),
        "see shared": tried(api.model_info, "lab/shared"),
        "load hidden": tried(api.hf_hub_download, "ada/hidden", "x.txt", cache_dir=f"cache-{{name}}"),
        "push": tried(api.upload_file, repo_id="ada/open", **file),
        "pull request": tried(api.upload_file, repo_id="ada/open", create_pr=True, **{{**file, "path_in_repo": name}}),
        "exists": tried(api.create_repo, "ada/open", exist_ok=True),
        "delete": tried(api.delete_repo, "ada/open") if name != "ada" else None,
        "listed": [model.id for model in api.list_models(author="ada")] if name != "wrong" else None,
    }}
ada.update_repo_settings("ada/hidden", private=False)
facts["shown"] = tried(nobody.model_info, "ada/hidden")
print(json.dumps(facts))
"""


def test_each_token_may_do_what_the_hub_lets_it_do(hub, run_with_hub):  # noqa: F811
    facts = json.loads(run_with_hub(_SCRIPT, token=None).stdout)
    for key in facts["ada"].keys() - {"delete", "listed"}:
        assert facts["ada"][key][0] == "fine", key
        assert facts["wrong"][key][0] != "fine", key

    reader = facts["reader"]
    assert [reader[key][0] for key in ("who", "see open", "see hidden", "see shared", "load hidden")] == ["fine"] * 5
    for key in ("push", "pull request", "delete"):
        assert reader[key][1] == 403, key
        assert "you must use a write token" in reader[key][2]
    assert reader["create"][1] == 403
    assert 'rights to create a model under the namespace "ada"' in reader["create"][2]
    assert reader["exists"][0] == "fine"  # the client falls back on looking whether the repository is there

    bob = facts["bob"]
    assert [bob[key][0] for key in ("who", "see open", "pull request")] == ["fine"] * 3
    assert [bob[key][1] for key in ("create", "push", "delete")] == [403] * 3
    assert "create_pr=1" in bob["push"][2]
    assert [bob[key][:2] for key in ("see hidden", "see shared")] == [["RepositoryNotFoundError", 404]] * 2

    assert facts["wrong"]["who"][1] == 401
    nobody = facts["nobody"]
    assert nobody["see open"][0] == "fine"
    assert nobody["see hidden"][:2] == ["RepositoryNotFoundError", 401]
    assert [nobody[key][0] for key in ("create", "push", "pull request", "delete")].count("fine") == 0

    assert facts["ada"]["listed"] == ["ada/by-ada", "ada/hidden", "ada/open"]
    assert facts["bob"]["listed"] == facts["nobody"]["listed"] == ["ada/by-ada", "ada/open"]
    assert facts["shown"][0] == "fine"
    assert set(hub.files("ada/open")) == {".gitattributes", "x.txt"}


def test_a_token_belongs_to_one_user_and_has_a_known_role():
    accounts = Accounts()
    accounts.add("ada", "hf_1")
    with pytest.raises(ValueError, match="ada"):
        accounts.add("bob", "hf_1")
    with pytest.raises(ValueError, match="admin"):
        accounts.add("bob", "hf_2", role="admin")
