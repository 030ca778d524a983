"""Do wheel and sdist hold what they should, and nothing else? `python .ci/check_dist.py dist`."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
(sdist,) = folder.glob("*.tar.gz")

in_wheel = set(zipfile.ZipFile(wheel).namelist())
needed = {
    "isae_cli/app.py",
    "sae_lens_isae/py.typed",
    "sae_lens_isae/recoding/facts.csv",
    "sae_lens_isae/report/templates/page.html.j2",
    *(f"sae_lens_isae/configs/{path.name}" for path in Path("configs").glob("*.yaml")),
    *(str(path) for path in Path("sae_lens_isae").rglob("*.py")),
}
foreign = {
    name
    for name in in_wheel
    if not name.startswith(("sae_lens_isae/", "isae_cli/")) and ".dist-info/" not in name
}
with tarfile.open(sdist) as archive:
    in_sdist = {name.partition("/")[2] for name in archive.getnames()}
needed_in_sdist = {"README.md", "LICENSE", "CHANGELOG.md", "REFERENCES.md", "pyproject.toml"}
missing = (needed - in_wheel) | (needed_in_sdist - in_sdist)
if missing or foreign:
    sys.exit(f"missing: {sorted(missing)}; foreign: {sorted(foreign)}")
print(f"{wheel.name}: {len(in_wheel)} files, {sdist.name}: {len(in_sdist)} files")
