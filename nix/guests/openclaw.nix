# OpenClaw in a guest: the package, what its tools find, and where both are. For the roles that run it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ../lib/generated.nix) machine services;
  cfg = config.services.mvm.openclaw;
  keepAlive =
    name: what:
    mkOption {
      type = types.ints.positive;
      default = lib.toInt machine.sysctl."net.ipv4.tcp_keepalive_${name}";
      description = what;
    };
in
{
  options.services.mvm.openclaw = {
    package = mkOption {
      type = types.package;
      default = import ../packages/openclaw.nix { inherit pkgs; };
      description = ''
        OpenClaw: a package with `lib/node_modules/openclaw/openclaw.mjs`, and `lib/node_modules/@openclaw/discord` for
        gateways. By default the version that mvm is tested with, from npm, by the hashes of mvm's lock.
      '';
    };
    nodejs = mkOption {
      type = types.package;
      default = import ../packages/nodejs.nix { inherit pkgs; };
      description = "Node.js that runs OpenClaw; its version decides whether OpenClaw starts.";
    };
    extraPackages = mkOption {
      type = types.listOf types.package;
      default = [ ];
      description = "Programs that OpenClaw's tools find besides Node.js, socat, jq, curl and git.";
    };
    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
      description = ''
        Variables of OpenClaw's that are no secret. What a secret or mvm itself says under the same name goes before.
      '';
    };
    tcpKeepAlive = {
      time = keepAlive "time" "Seconds of silence after which a connection is looked after.";
      interval = keepAlive "intvl" "Seconds between two looks that are not answered.";
      probes = keepAlive "probes" "Looks that are not answered until a connection is lost.";
    };
  };

  config = {
    services.mvm.guest.layout = {
      ${services.programs.node}.source = "${cfg.nodejs}/bin/node";
      ${dirOf services.programs.openclaw} = {
        source = "${cfg.package}/lib/node_modules";
        copied = true;
      };
    };
    environment.systemPackages = [
      cfg.nodejs
      pkgs.socat
      pkgs.jq
      pkgs.curl
      pkgs.git
    ]
    ++ cfg.extraPackages;
    systemd.services.openclaw-gateway.environment = lib.mapAttrs (_: lib.mkDefault) cfg.environment;
    # A peer that was put to sleep or moved is noticed within two minutes.
    boot.kernel.sysctl = {
      "net.ipv4.tcp_keepalive_time" = lib.mkForce cfg.tcpKeepAlive.time;
      "net.ipv4.tcp_keepalive_intvl" = lib.mkForce cfg.tcpKeepAlive.interval;
      "net.ipv4.tcp_keepalive_probes" = lib.mkForce cfg.tcpKeepAlive.probes;
    };
  };
}
