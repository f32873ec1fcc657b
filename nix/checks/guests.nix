# Guests boot, take their drives in and do what their agent is asked for; one that has no drives does so as fast.
{ self, pkgs }:
let
  inherit (pkgs) lib;
  drives = import ./drives.nix { inherit pkgs; };

  # NixOS's test machines have a kernel, an initial RAM disk and a root of their own, and a shell that needs udev.
  inTest = {
    boot.kernel.enable = true;
    boot.initrd.enable = true;
    boot.modprobeConfig.enable = true;
    boot.initrd.availableKernelModules = [ "erofs" ];
    boot.kernelModules = [ "erofs" ];
    services.udev.enable = true;
    environment.systemPackages = [ pkgs.socat ];
    virtualisation.memorySize = 2048;
  };
  node = module: role: {
    imports = [
      module
      self.nixosModules.mvm-baseline
      inTest
    ];
    virtualisation.qemu.options = drives role;
  };
in
pkgs.testers.runNixOSTest {
  name = "mvm-guests";

  nodes = {
    worker = node self.nixosModules.mvm-role-worker "worker";
    person = node self.nixosModules.mvm-role-openclaw "capability-openclaw";
    bare = {
      imports = [
        self.nixosModules.mvm-role-worker
        inTest
      ];
    };
  };

  testScript = ''
    UNITS = "mvm-machine mvm-supervisor mvm-channel mvm-integration-manager mvm-worker-agent mvm-sleep-prep-vsock"

    def comes_up(machine):
        machine.wait_for_unit("mvm-worker-agent.service")
        machine.wait_for_file("/run/mvm/ch/guest_52.sock")
        machine.wait_for_file("/run/mvm/ch/guest_5200.sock")

    def sleep_prep(machine):
        return machine.succeed("echo SLEEP_PREP | socat -t 60 - UNIX-CONNECT:/run/mvm/ch/guest_5200.sock").strip()

    start_all()

    with subtest("a guest without drives comes up and says what it lacks"):
        comes_up(bare)
        assert sleep_prep(bare).startswith("NAK"), "it has no configuration"
        bare.succeed("systemctl is-active mvm-supervisor.service")

    with subtest("nothing of mvm's waits for the network or for devices"):
        for machine in (bare, worker, person):
            for unit in UNITS.split():
                needs = machine.succeed(f"systemctl show --property=Requires,Wants,After,BindsTo {unit}")
                for wrong in ("network-online.target", "systemd-udev-settle.service", ".device"):
                    assert wrong not in needs, f"{unit} waits for {wrong}: {needs}"

    with subtest("a worker has taken its drives in"):
        comes_up(worker)
        worker.succeed("findmnt --types ext4 /data")
        worker.succeed("test -s /etc/mvm-config/config.json")
        worker.succeed("test $(cat /etc/hostname) = i-0a1b2c3d")
        worker.succeed("test $(stat --format=%a:%U:%G /run/secrets/telegram/TELEGRAM_BOT_TOKEN) = 640:root:openclaw")
        assert worker.succeed("sysctl --values net.ipv4.tcp_keepalive_time").strip() == "60"
        assert sleep_prep(worker) == "ACK"

    with subtest("a person's OpenClaw is started by the agent, as a user of its own, with its secrets"):
        comes_up(person)
        person.wait_for_unit("openclaw-gateway.service")
        person.succeed("grep --quiet '^OPENCLAW_GATEWAY_TOKEN=' /run/openclaw/env")
        person.succeed("test $(stat --format=%a /run/openclaw/env) = 600")
        shown = person.succeed("systemctl show openclaw-gateway --property=User,NoNewPrivileges,ProtectSystem,OOMScoreAdjust")
        for line in ("User=openclaw", "NoNewPrivileges=yes", "ProtectSystem=strict", "OOMScoreAdjust=500"):
            assert line in shown, shown
        person.wait_for_open_port(18789, timeout=600)

    with subtest("what ends is started again, and nothing of it is left"):
        before = person.succeed("systemctl show --value --property=MainPID mvm-worker-agent").strip()
        person.succeed(f"kill -KILL {before}")
        person.wait_until_succeeds("test -S /run/mvm/ch/guest_52.sock && systemctl is-active mvm-worker-agent.service")
        assert before != person.succeed("systemctl show --value --property=MainPID mvm-worker-agent").strip()
        person.succeed("systemctl is-active openclaw-gateway.service")
  '';

  meta.platforms = lib.platforms.linux;
}
