# What a host attaches to an instance, made ahead: drives for NixOS's test machines, as QEMU takes them.
{ pkgs }:
let
  inherit (pkgs) lib;

  config = role: {
    instance_id = "i-0a1b2c3d";
    pool_id = "people";
    tenant_id = "alice";
    inherit role;
    guest_ip = "10.240.12.4";
    gateway_ip = "10.240.12.1";
    prefix = 24;
    vcpus = 1;
    mem_mib = 2048;
    openclaw = { };
    config_version = 1;
    secrets_epoch = 1;
  };
  openclawConfig = {
    gateway = {
      mode = "local";
      port = 18789;
      bind = "loopback";
    };
  };

  erofs =
    name: files:
    pkgs.runCommand "${name}.erofs" { nativeBuildInputs = [ pkgs.erofs-utils ]; } ''
      mkdir tree
      ${lib.concatStrings (
        lib.mapAttrsToList (path: text: ''
          install -D ${pkgs.writeText "file" text} tree/${path}
        '') files
      )}
      mkfs.erofs "$out" tree
    '';
  data = pkgs.runCommand "data.ext4" { nativeBuildInputs = [ pkgs.e2fsprogs ]; } ''
    truncate --size=256M "$out"
    mkfs.ext4 -q "$out"
  '';
  # QEMU keeps what is written to itself: the images are in the store.
  attach = serial: image: [
    "-drive if=none,id=${serial},file=${image},format=raw,snapshot=on"
    "-device virtio-blk-pci,drive=${serial},serial=${serial}"
  ];
in
role:
attach "data" data
++ attach "secrets" (
  erofs "secrets" {
    "openclaw/OPENCLAW_AUTH_TOKEN" = "a-token";
    "telegram/TELEGRAM_BOT_TOKEN" = "another";
  }
)
++ attach "config" (
  erofs "config" {
    "config.json" = builtins.toJSON (config role);
    "openclaw.json" = builtins.toJSON openclawConfig;
  }
)
