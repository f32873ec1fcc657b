# Packages in name only: derivations that can be evaluated and compared, and that nobody builds.
{ system }:
let
  lib = import ./lib.nix;
  stub =
    name:
    derivation {
      inherit name system;
      builder = "/bin/sh";
    };
  versioned = name: version: stub "${name}-${version}" // { inherit version; };
  runCommand =
    name: attributes: command:
    let
      made = derivation (
        builtins.removeAttrs attributes [ "passthru" "passAsFile" ]
        // {
          inherit name system command;
          builder = "/bin/sh";
          nativeBuildInputs = map toString (attributes.nativeBuildInputs or [ ]);
        }
      );
    in
    made // { inherit name command; } // attributes.passthru or { };
  python = versioned "python3" "3.13.9" // {
    withPackages = choose: stub "python3-with-${toString (map (each: each.name) (choose python3Packages))}";
  };
  python3Packages =
    lib.genAttrs [
      "aiohttp"
      "cryptography"
      "pip"
      "prometheus-client"
      "psutil"
      "pydantic"
      "pyroute2"
      "pyyaml"
      "qemu-qmp"
      "rich"
      "structlog"
      "typer"
      "uv-build"
      "watchfiles"
      "zstandard"
    ] stub
    // {
      buildPythonApplication = attributes: stub "${attributes.pname}-${attributes.version}" // attributes;
    };
  cpu = builtins.head (lib.splitString "-" system);
in
lib.genAttrs [
  "binutils"
  "cacert"
  "curl"
  "e2fsprogs"
  "erofs-utils"
  "git"
  "iproute2"
  "jq"
  "nano"
  "nftables"
  "nix"
  "procps"
  "qemu"
  "socat"
  "util-linux"
] stub
// {
  inherit
    lib
    python3Packages
    runCommand
    stub
    system
    ;
  python3 = python;
  nodejs_24 = versioned "nodejs" "24.19.0";
  pkgsStatic.busybox = stub "busybox-static";
  linuxPackages.kernel = versioned "linux" "6.18.1" // {
    modDirVersion = "6.18.1";
    dev = stub "linux-dev";
    modules = stub "linux-modules";
  };
  stdenv.hostPlatform = {
    inherit system;
    isx86_64 = cpu == "x86_64";
    parsed.cpu.name = cpu;
  };
  # As the real one: a derivation with a known digest needs no more than that to be fetched.
  stdenvNoCC.mkDerivation =
    attributes:
    derivation (
      builtins.removeAttrs attributes [ "nativeBuildInputs" "buildCommand" "preferLocalBuild" ]
      // {
        inherit system;
        builder = "/bin/sh";
      }
    )
    // {
      inherit (attributes) buildCommand;
    };
  closureInfo = { rootPaths }: derivation { name = "closure"; inherit system; builder = "/bin/sh"; inherit rootPaths; };
  writeText = name: text: builtins.toFile name (builtins.unsafeDiscardStringContext text);
  testers.runNixOSTest = test: stub "vm-test-${test.name}" // { inherit test; };
}
