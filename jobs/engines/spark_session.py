"""Start Spark with the settings that every job of ours relies on, and say what is missing before Spark does."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.sql import SparkSession

from jobs.paths import spark_uri
from model.artifact import AnyPath
from model.errors import CourierError

OLDEST_JAVA = 17  # Spark 4 runs on nothing older
CURE = f"install Java {OLDEST_JAVA} or newer (Debian: apt-get install openjdk-17-jre-headless) or set JAVA_HOME to one"

# What the results depend on, wherever the job runs.
SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # pandas writes nanoseconds, which Spark otherwise refuses
    # Of the clicks over a cap each task passes on no more than are accepted: event_validation.over_cap_users.
    "spark.sql.optimizer.windowGroupLimitThreshold": "2147483647",
    # Packing what is kept between two passes cost twice what keeping it does: 3.2 s of CPU a million events, not 1.5.
    "spark.sql.inMemoryColumnarStorage.compressed": "false",
    # Rows that lie by the hash of request_id are not shuffled again to meet others by it and something besides.
    "spark.sql.requireAllClusterKeysForCoPartition": "false",
    "spark.sql.execution.replaceHashWithSortAgg": "true",  # page_views.pages hands on the order of what it gathered
    "spark.log.level": "ERROR",
}
LOGGING = Path(__file__).with_name("log4j2.properties")
# What one machine needs besides; a cluster brings its own.
LOCAL_SETTINGS = {
    "spark.driver.host": "127.0.0.1",  # a laptop's host name often leads nowhere
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "4g",
    "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={LOGGING.as_uri()}",
    "spark.ui.enabled": "false",
}
# A short job spends its time compiling, a long one earns it back: without Java's second compiler, 370k events took 49 s
# of CPU cold and not 70, but 2 M events 108 s and not 61.
SHORT_JOB = "-XX:TieredStopAtLevel=1"
# A collector that works while the job does takes one of two cores from it, and what is kept between two passes wants
# room: 20 M events took 192 s as Java does by itself with 4 GiB, 175 s with this one, 157 s with 8 GiB too. docs/LOG.md
LONG_JOB = "-XX:+UseParallelGC"
HEAP_GIB = (4, 8)  # at least and at most; between them a third of the machine's memory
# What opens a store for Spark, of the same version as its Hadoop.
CONNECTORS = {"s3a": "org.apache.hadoop:hadoop-aws", "abfs": "org.apache.hadoop:hadoop-azure"}
PARTITIONS = "spark.sql.shuffle.partitions"
LOCAL_PARTITIONS = "8"  # Spark's 200 cost one machine more than the work: 18k events took over 3 minutes


class ConnectorMissing(CourierError):
    """Spark lacks what opens a store; the message says what to add."""


class JavaMissing(CourierError):
    """This machine has no Java that Spark can run on; the message says how to get one."""


def spark_session(app_name: str, master: str | None = None, *, large: bool = False) -> SparkSession:
    """The running session with our settings, or a new one: on every core here, unless spark-submit has named a master.

    large: whether there is enough to do for Java to compile thoroughly.  Raises JavaMissing.
    """
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # spark-submit has started Java and chosen the master
    builder = SparkSession.builder.appName(app_name)
    settings = dict(SETTINGS)
    if not submitted and SparkSession.getActiveSession() is None:
        require_java()
        builder = builder.master(master or "local[*]")
        settings |= _progress()
        if (master or "local").startswith("local"):
            settings |= _local_settings(large)
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # not what is called python3 on the PATH
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    context = session.sparkContext
    context.setLogLevel(settings["spark.log.level"])
    if (context.master or "").startswith("local") and not context.getConf().contains(PARTITIONS):
        session.conf.set(PARTITIONS, LOCAL_PARTITIONS)
    return session


def spark_place(spark: SparkSession, path: AnyPath) -> str:
    """The path as Spark is told of it, to write there. Raises ConnectorMissing where its Hadoop cannot reach it."""
    missing = connector_missing(spark, path)
    if missing is not None:
        raise ConnectorMissing(missing)
    return spark_uri(path)


def connector_missing(spark: SparkSession, path: AnyPath) -> str | None:
    """What to add so that Spark's Hadoop can reach this place, in a sentence; None where it can."""
    scheme = spark_uri(path).partition("://")[0]
    hadoop = spark._jvm.org.apache.hadoop  # type: ignore[union-attr]
    try:
        hadoop.fs.FileSystem.getFileSystemClass(scheme, spark._jsc.hadoopConfiguration())
    except Py4JJavaError:
        known = CONNECTORS.get(scheme)
        package = f"{known}:{hadoop.util.VersionInfo.getVersion()}" if known else "PACKAGE"
        return (
            f"Spark has no connector for {scheme}://, so it cannot reach {path}: say `--packages={package}` to "
            f"spark-submit, or `spark.jars.packages {package}` in the spark-defaults.conf of SPARK_CONF_DIR"
        )
    return None


def _local_settings(large: bool) -> dict[str, str]:
    options = "spark.driver.extraJavaOptions"
    suited = {options: f"{LONG_JOB if large else SHORT_JOB} {LOCAL_SETTINGS[options]}"}
    return LOCAL_SETTINGS | suited | ({"spark.driver.memory": f"{_heap_gib()}g"} if large else {})


def _heap_gib() -> int:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    least, most = HEAP_GIB
    return min(max(least, machine // 3 // 2**30), most)


def _progress() -> dict[str, str]:
    return {"spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower()}


def require_java() -> None:
    """Raises JavaMissing unless Java 17 or newer stands in JAVA_HOME or, where that is not set, on the PATH."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin") if home else None)
    if java is None:
        where = f"JAVA_HOME ({home}) holds no bin/java" if home else "there is no java on the PATH"
        raise JavaMissing(f"Spark needs Java {OLDEST_JAVA}+ and {where}: {CURE}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = java_version(said)
    if version is None or version < OLDEST_JAVA:
        raise JavaMissing(f"Spark needs Java {OLDEST_JAVA}+ and {java} is {version or 'not a working Java'}: {CURE}")


def java_version(said: str) -> int | None:
    """The major version in what `java -version` says: 17 for "17.0.15", 8 for "1.8.0_292"; None where it says none."""
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found[1]) if found else None
