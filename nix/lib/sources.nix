# What of the repository goes into packages: sources, without what running them leaves behind.
let
  clean = path: _type: builtins.match ".*/(__pycache__|node_modules|\\.mypy_cache|\\.ruff_cache)" path == null;
  part =
    name: path:
    builtins.path {
      inherit name path;
      filter = clean;
    };
in
{
  python = part "mvm-python" ../../src;
  plugin = part "mvm-openclaw-plugin" ../../src/mvm/openclaw/plugin;
  npmLock = ../../src/mvm/openclaw/npm/package-lock.json;
  prune = ../../src/mvm/image/prune.py;
  project = ../../pyproject.toml;
  readme = ../../README.md;
  license = ../../LICENSE;
}
