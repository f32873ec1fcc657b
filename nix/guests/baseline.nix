# What every guest is, whatever its role: the units of mvm's guest program, its users, its kernel settings, and nothing
# that waits. See docs/nix.md and docs/adr/0030-nixos-guests.md.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkDefault mkForce mkOption types;
  inherit (import ../lib/generated.nix) drives machine services;
  cfg = config.services.mvm.guest;
  units = import ../lib/units.nix { inherit lib; };
  guest = import ../packages/guest.nix {
    inherit pkgs;
    inherit (cfg) python;
  };
in
{
  options.services.mvm.guest = {
    role = mkOption {
      type = types.enum machine.roles;
      description = "What the guest is for. The modules of roles set it; it decides which units there are.";
    };
    profile = mkOption {
      type = types.str;
      default = "minimal";
      description = "Name of the set of packages in the guest, for what the image says of itself.";
    };
    python = mkOption {
      type = types.package;
      default = pkgs.python3;
      description = "Python that runs the guest's program; 3.11 or newer.";
    };
    zipapp = mkOption {
      type = types.path;
      default = "${guest.zipapp}/guest.pyz";
      description = "The guest's program, one file.";
    };
    plugin = mkOption {
      type = types.path;
      default = "${guest.plugin}";
      description = "Directory of mvm's plugin for OpenClaw.";
    };
    links = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether what has a fixed place in a guest is put there by links into the store when the guest boots. Images that
        mvm's flake makes hold copies instead, for OpenClaw wants real files.
      '';
    };
    layout = mkOption {
      type = types.attrsOf (
        types.submodule {
          options = {
            source = mkOption {
              type = types.str;
              description = "What is there.";
            };
            copied = mkOption {
              type = types.bool;
              default = false;
              description = "Whether images hold a copy: OpenClaw does not take links for files of its own.";
            };
          };
        }
      );
      default = { };
      internal = true;
      description = "Fixed places of a guest, and what is there. The host knows these places too.";
    };
    drives = mkOption {
      type = types.listOf (types.attrsOf types.anything);
      default = lib.filter (drive: lib.elem drive.serial drives.roles.${cfg.role}) drives.drives;
      readOnly = true;
      description = ''
        Drives that instances of this role have, in order. They are found by serial number in /sys/block and taken by
        `mvm-machine`, never by a mount unit: no unit waits for a device, and one that is not there delays nothing.
      '';
    };
  };

  config = {
    services.mvm.guest.layout = {
      ${services.programs.python}.source = "${cfg.python}/bin/python3";
      ${services.programs.check}.source = "${pkgs.e2fsprogs}/bin/e2fsck";
      ${services.programs.zipapp} = {
        source = toString cfg.zipapp;
        copied = true;
      };
      ${services.programs.plugin} = {
        source = toString cfg.plugin;
        copied = true;
      };
    };

    systemd.services = lib.mkMerge [
      (units.ofRole cfg.role)
      {
        systemd-udev-settle.enable = mkForce false;
        # Nobody logs in.
        "serial-getty@ttyS0".enable = mkDefault false;
        "getty@tty1".enable = mkDefault false;
        "autovt@".enable = mkDefault false;
      }
    ];
    systemd.tmpfiles.rules = lib.optionals cfg.links (
      lib.mapAttrsToList (place: there: "L+ ${place} - - - - ${there.source}") cfg.layout
    );

    users.mutableUsers = mkDefault false;
    users.allowNoPasswordLogin = mkDefault true;
    users.users = lib.mapAttrs (name: number: {
      uid = number;
      group = name;
      isSystemUser = true;
      home = machine.homes.${name};
      description = "mvm: ${name}";
    }) machine.users;
    users.groups = lib.mapAttrs (_: number: { gid = number; }) machine.users;

    boot.kernel.sysctl = machine.sysctl;

    # The kernel and the initial RAM disk are files of the image beside the root, and not in it.
    boot.kernel.enable = mkDefault false;
    boot.initrd.enable = mkDefault false;
    boot.loader.grub.enable = mkDefault false;
    boot.modprobeConfig.enable = mkDefault false;
    fileSystems."/" = mkDefault {
      device = "none";
      fsType = "overlay";
      options = [ "x-initrd.mount" ];
    };

    # mvm-machine gives the instance its addresses, names and resolvers. Nothing waits for a network or for devices.
    networking.useDHCP = mkDefault false;
    networking.dhcpcd.enable = mkDefault false;
    networking.useNetworkd = mkDefault false;
    networking.firewall.enable = mkDefault false;
    networking.resolvconf.enable = mkDefault false;
    networking.hostName = mkDefault "";
    systemd.network.wait-online.enable = mkDefault false;
    services.udev.enable = mkDefault false;

    # Logs of services are files on the data drive; what is said before that is kept in memory.
    services.journald.storage = mkDefault "volatile";
    systemd.coredump.enable = mkDefault false;
    systemd.oomd.enable = mkDefault false;

    # Nothing is installed, nothing happens by the clock.
    systemd.timers.systemd-tmpfiles-clean.enable = mkDefault false;
    security.sudo.enable = mkDefault false;
    services.nscd.enable = mkDefault false;
    system.nssModules = mkForce [ ];
    services.timesyncd.enable = mkDefault false;
    nix.enable = mkDefault false;
    documentation.enable = mkDefault false;
    programs.command-not-found.enable = mkDefault false;
    environment.defaultPackages = mkDefault [ ];
    system.switch.enable = mkDefault false;
    system.stateVersion = mkDefault "26.05";
  };
}
