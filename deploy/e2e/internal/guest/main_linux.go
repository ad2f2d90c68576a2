// Command guest is the init process of the virtual machine in which
// TestPowerLoss runs the manager.
//
// It loads the modules in /modules in the order of their names, mounts the
// ext4 disk /dev/vda on /data, gives eth0 the address that QEMU's user network
// forwards to, and runs /standalone with the arguments behind the word
// "manager". The manager's folder is served read-only on port 8003. A manager
// that ends is started again, as a server's service manager does, a few times;
// then the machine is switched off.
//
// With -remove=a,b the folders a and b of the manager are deleted first.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	address   = "10.0.2.15"
	filesAddr = address + ":8003"
	data      = "/data/nightjar"
	// starts is how often the manager is started.
	starts = 3
)

func main() {
	fmt.Println("guest: switched off:", run())
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("guest: power off:", err)
	}
	select {} // an init that ends makes the kernel panic
}

func run() error {
	remove := flag.String("remove", "", "folders of the manager that are deleted first, comma-separated")
	flag.Parse()
	if flag.Arg(0) != "manager" {
		return fmt.Errorf("the arguments are %q, want the word manager and those of the manager", flag.Args())
	}
	for _, step := range []func() error{mountSystem, loadModules, mountData, network} {
		if err := step(); err != nil {
			return err
		}
	}
	if *remove != "" {
		for _, dir := range strings.Split(*remove, ",") {
			if _, err := os.Stat(filepath.Join(data, dir)); err != nil {
				return fmt.Errorf("remove: %w", err)
			}
			if err := os.RemoveAll(filepath.Join(data, dir)); err != nil {
				return err
			}
		}
	}
	go func() { fmt.Println("guest: files:", http.ListenAndServe(filesAddr, http.FileServer(http.Dir(data)))) }()
	for range starts {
		manager := exec.Command("/standalone", append([]string{"--data-dir", data}, flag.Args()[1:]...)...)
		manager.Stdout, manager.Stderr = os.Stdout, os.Stderr
		manager.Env = []string{"GOTRACEBACK=all", "TMPDIR=/tmp"}
		fmt.Println("guest: the manager has ended:", manager.Run())
	}
	return fmt.Errorf("the manager has ended %d times", starts)
}

func mount(what, where, kind string, flags uintptr, options string) error {
	if err := os.MkdirAll(where, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(what, where, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", what, where, err)
	}
	return nil
}

func mountSystem() error {
	for where, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/tmp": "tmpfs"} {
		if err := mount(kind, where, kind, 0, ""); err != nil {
			return err
		}
	}
	return nil
}

func loadModules() error {
	files, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	return nil
}

// mountData mounts the disk as a server would, and stops at the first error in
// the file system.
func mountData() error {
	return mount("/dev/vda", "/data", "ext4", unix.MS_NOATIME, "errors=panic")
}

// network brings the loopback interface and eth0 up.
func network() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	for _, i := range []struct {
		name          string
		address, mask [4]byte
	}{
		{"lo", [4]byte{127, 0, 0, 1}, [4]byte{255}},
		{"eth0", [4]byte{10, 0, 2, 15}, [4]byte{255, 255, 255}},
	} {
		if err := up(fd, i.name, i.address, i.mask); err != nil {
			return fmt.Errorf("bring %s up: %w", i.name, err)
		}
	}
	return nil
}

func up(fd int, name string, address, mask [4]byte) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := r.SetInet4Addr(address[:]); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, r); err != nil {
		return err
	}
	if err := r.SetInet4Addr(mask[:]); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFNETMASK, r); err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
