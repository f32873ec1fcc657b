# A host of mvm's: the agent as a service, and what its networks and machines need of the system. The service is that of
# deploy/mvm-agent.service; a test compares the two.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkDefault
    mkEnableOption
    mkIf
    mkOption
    optionalAttrs
    types
    ;
  cfg = config.services.mvm.host;
  ownDevices = [
    "br-tenant-*"
    "tn*i*"
  ];
in
{
  options.services.mvm.host = {
    enable = mkEnableOption "mvm's agent, which runs instances of OpenClaw";
    package = mkOption {
      type = types.package;
      default = import ../packages/mvm.nix { inherit pkgs; };
      description = "mvm itself.";
    };
    group = mkOption {
      type = types.str;
      default = "mvm";
      description = "Whoever is in this group may talk to the agent, and with that do anything to any instance.";
    };
    production = mkOption {
      type = types.bool;
      default = true;
      description = "Refuse what is for development: instances without isolation, unsigned requests from the network.";
    };
    runtime = mkOption {
      type = types.enum [
        "auto"
        "firecracker"
        "qemu"
        "process"
      ];
      default = "auto";
      description = "How instances run; `auto` takes the first that works and says why.";
    };
    metricsPort = mkOption {
      type = types.nullOr types.port;
      default = null;
      description = "Port on loopback where Prometheus finds the agent's figures; null: none.";
    };
    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        MVM_LOG = "debug";
      };
      description = "Further variables of the agent's (docs/operations.md has them).";
    };
  };

  config = mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    users.groups.${cfg.group} = { };

    systemd.services.mvm-agent = {
      description = "mvm agent: OpenClaw instances, asleep until somebody writes to them";
      after = [ "network.target" ];
      wantedBy = [ "multi-user.target" ];
      # Images of flakes are built by this host's own nix.
      path = lib.optional config.nix.enable config.nix.package;
      environment = {
        MVM_RUNTIME = cfg.runtime;
      }
      // optionalAttrs cfg.production { MVM_PRODUCTION = "1"; }
      // optionalAttrs (cfg.metricsPort != null) { MVM_METRICS_PORT = toString cfg.metricsPort; }
      // cfg.environment;
      # A new version takes over from the old one; instances go on.
      restartIfChanged = true;
      serviceConfig = {
        Type = "exec";
        ExecStart = "${cfg.package}/bin/mvm agent serve";
        Restart = "always";
        RestartSec = 1;
        KillMode = "process";
        TimeoutStopSec = 20;
        StateDirectory = "mvm";
        StateDirectoryMode = "0700";
        RuntimeDirectory = "mvm";
        RuntimeDirectoryPreserve = "yes";
        Delegate = "yes";
        LimitNOFILE = 65536;
        Group = cfg.group;
        # What the agent never needs. Instances are its children: what would be taken from it would be taken from them.
        LockPersonality = true;
        RestrictRealtime = true;
        ProtectKernelModules = true;
        ProtectKernelLogs = true;
        SystemCallArchitectures = "native";
      };
    };

    # The agent cannot load modules itself.
    boot.kernelModules = [
      "tun"
      "bridge"
      "vhost_vsock"
    ];
    boot.kernel.sysctl."net.ipv4.ip_forward" = mkDefault true;

    # mvm has one nftables table of its own, which no reload of the host's rules may remove. What guests may reach of the
    # host is decided there; a second look by the host's firewall would drop what was granted.
    networking.nftables.enable = mkDefault true;
    networking.nftables.flushRuleset = mkDefault false;
    networking.firewall.extraInputRules = ''iifname "br-tenant-*" accept comment "mvm decides"'';
    networking.firewall.checkReversePath = mkDefault "loose";

    # Bridges and TAPs of tenants are mvm's.
    networking.dhcpcd.denyInterfaces = ownDevices;
    networking.networkmanager.unmanaged = map (name: "interface-name:${name}") ownDevices;

    # Looked for where every other Linux has it.
    systemd.tmpfiles.rules = [ "L+ /usr/bin/setpriv - - - - ${pkgs.util-linux}/bin/setpriv" ];
  };
}
