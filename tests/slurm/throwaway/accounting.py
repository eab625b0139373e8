"""slurmdbd and a MariaDB of its own, for what is only to be asked where accounting is on."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from .daemons import Daemons, free_ports, listens, wait_for

DATABASE, USER = "slurm_acct_db", "slurm"
# A small log and no waiting for the disk: the data are gone when the tests are.
QUICK = (
    "--innodb-log-file-size=4M",
    "--innodb-buffer-pool-size=32M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--innodb-doublewrite=0",
)
DAEMON = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=localhost
DbdAddr={address}
DbdPort={port}
SlurmUser={user}
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser={database_user}
StorageLoc={database}
"""
# AccountingStoragePass is where sacct and sacctmgr find the munge socket when it is not at the usual place.
CLUSTER = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.sock
AccountingStorageTRES=gres/gpu
"""


class Accounting:
    """The accounting of the cluster in `folder`; `address` is where its nodes and clients reach this machine."""

    def __init__(self, folder: Path, address: str, daemons: Daemons) -> None:
        self._folder, self._address, self._daemons = folder, address, daemons
        self._port, self._database_port = free_ports(2)

    def settings(self) -> str:
        """The lines of slurm.conf."""
        return CLUSTER.format(folder=self._folder, address=self._address, port=self._port)

    def start(self, environment: Mapping[str, str]) -> None:
        """Both daemons, and the cluster made known to them, which has to be before slurmctld starts."""
        self._start_database()
        path = self._folder / "slurmdbd.conf"
        path.touch(0o600)  # slurmdbd refuses one that others could read
        path.write_text(
            DAEMON.format(
                folder=self._folder,
                address=self._address,
                port=self._port,
                user=getpass.getuser(),
                database_port=self._database_port,
                database_user=USER,
                database=DATABASE,
            )
        )
        self._daemons.start("slurmdbd", "slurmdbd", "-D", environment=environment, cwd=self._folder)
        wait_for(lambda: listens(self._address, self._port), 60, "slurmdbd")
        words = ["sacctmgr", "--immediate", "add", "cluster", "throwaway"]
        subprocess.run(words, env={**os.environ, **environment}, check=True, capture_output=True, text=True)

    def _start_database(self) -> None:
        """MariaDB with one user, whom only this machine can be and who needs no password."""
        data, socket, user = self._folder / "database", self._folder / "database.sock", getpass.getuser()
        common = ["--no-defaults", f"--user={user}", f"--datadir={data}", *QUICK]
        install = ["mariadb-install-db", *common, "--skip-test-db", "--auth-root-authentication-method=normal"]
        subprocess.run(install, check=True, capture_output=True, text=True)
        places = [f"--socket={socket}", f"--port={self._database_port}", f"--pid-file={self._folder}/mariadbd.pid"]
        self._daemons.start("mariadbd", "mariadbd", *common, *places, "--bind-address=127.0.0.1")
        wait_for(lambda: listens("127.0.0.1", self._database_port), 60, "MariaDB")
        grant = f"create database {DATABASE}; create user {USER}@'%'; grant all on {DATABASE}.* to {USER}@'%';"
        client = ["mariadb", "--no-defaults", "--user=root", f"--socket={socket}", f"--execute={grant}"]
        subprocess.run(client, check=True, capture_output=True, text=True)
