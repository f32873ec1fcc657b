# OpenClaw and its Discord channel from npm, every package by the digest in mvm's lock, without what no guest reads.
{
  pkgs,
  lock ? (import ../lib/sources.nix).npmLock,
}:
let
  inherit (pkgs) lib;
  sources = import ../lib/sources.nix;
  nodejs = import ./nodejs.nix { inherit pkgs; };
  locked = builtins.fromJSON (builtins.readFile lock);

  # What has no digest comes inside of a package that has one.
  wanted = lib.filterAttrs (_: package: package ? integrity && !(package.optional or false)) locked.packages;
  nameOf = path: package: package.name or (lib.last (lib.splitString "node_modules/" path));
  tarballs = lib.mapAttrs (
    path: package:
    import ./npm-tarball.nix {
      inherit pkgs nodejs;
      inherit (package) version integrity;
      name = nameOf path package;
    }
  ) wanted;
  inherit (locked.packages."node_modules/openclaw") version;
in
pkgs.runCommand "openclaw-${version}"
  {
    nativeBuildInputs = [
      nodejs
      pkgs.python3
    ];
    passthru = {
      inherit version tarballs;
    };
    tarballs = builtins.toJSON tarballs;
    passAsFile = [ "tarballs" ];
  }
  ''
    python3 ${./unpack_npm.py} unpack ${lock} "$tarballsPath" node_modules
    # It finishes its installation when it is started first; that it says its version is the proof that it starts.
    export HOME=$TMPDIR OPENCLAW_STATE_DIR=$TMPDIR/state
    node node_modules/openclaw/openclaw.mjs --version | grep --fixed-strings ${lib.escapeShellArg version}
    mkdir -p "$out/lib"
    python3 ${./unpack_npm.py} prune ${sources.prune} node_modules "$out/lib/node_modules"
  ''
