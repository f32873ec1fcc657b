# The image of a guest: a derivation with just the files of an image revision (src/mvm/image/base.py).
{
  pkgs,
  guest,
}:
let
  inherit (pkgs) lib;
  inherit (guest) config;
  inherit (import ./generated.nix) machine;
  cfg = config.services.mvm.guest;
  openclaw = config.services.mvm.openclaw or null;
  inherit (config.boot.kernelPackages) kernel;
  inherit (config.system.build) toplevel;
  inherit (pkgs.stdenv) hostPlatform;
  sources = import ./sources.nix;

  linked = lib.filterAttrs (_: there: !there.copied) cfg.layout;
  closure = pkgs.closureInfo {
    rootPaths = [ toplevel ] ++ lib.mapAttrsToList (_: there: there.source) linked;
  };
  description = {
    inherit (cfg) role profile;
    architecture = hostPlatform.parsed.cpu.name;
    toplevel = "${toplevel}";
    closure = "${closure}/store-paths";
    layout = lib.mapAttrs (_: there: if there.copied then there.source else "link:${there.source}") cfg.layout;
    # Machines start an ELF file where the processor is x86; elsewhere the kernel is started as it is.
    kernel = if hostPlatform.isx86_64 then "${kernel.dev}/vmlinux" else "${kernel}/Image";
    strip = if hostPlatform.isx86_64 then "${pkgs.binutils}/bin/strip" else "";
    kernel_release = kernel.modDirVersion;
    modules = "${lib.getOutput "modules" kernel}";
    wanted_modules = machine.modules;
    busybox = "${pkgs.pkgsStatic.busybox}/bin/busybox";
    kernel_arguments = machine.kernelArguments;
    node = if openclaw == null then "" else openclaw.nodejs.version;
    openclaw = if openclaw == null then "" else openclaw.package.version or "unknown";
    zipapp = toString cfg.zipapp;
  };
in
pkgs.runCommand "tenant-${cfg.role}-${cfg.profile}"
  {
    nativeBuildInputs = [
      (pkgs.python3.withPackages (packages: [ packages.pydantic ]))
      pkgs.erofs-utils
    ];
    description = builtins.toJSON description;
    passAsFile = [ "description" ];
    passthru = { inherit guest; };
  }
  ''
    PYTHONPATH=${sources.python} python3 -B ${../packages/make_image.py} "$descriptionPath" "$out"
  ''
