"""W1 on Spark Structured Streaming: split, grouped count in update mode, the `noop` sink; local[2].

Spark's own expressions (no Python function sees a record), and counts per micro-batch rather than per record: the way
Spark is meant to be used, and less work than the others do. The first micro-batch (start-up, compilation) is not
counted.
"""

from bench.measure import report, setting
from pyspark.sql import SparkSession
from pyspark.sql.functions import col, explode, split

spark = (
    SparkSession.builder.master("local[2]")
    .appName("w1")
    .config("spark.ui.enabled", "false")
    .config("spark.sql.shuffle.partitions", "2")
    .config("spark.sql.streaming.numRecentProgressUpdates", "1000")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.log.level", "ERROR")
    .getOrCreate()
)
lines = spark.readStream.option("maxFilesPerTrigger", 2).text(setting("DIRECTORY"))
counts = lines.select(explode(split(col("value"), " ")).alias("word")).groupBy("word").count()
query = counts.writeStream.outputMode("update").format("noop").trigger(availableNow=True).start()
query.awaitTermination()
done = [progress for progress in query.recentProgress if progress["numInputRows"]][1:]
words = sum(progress["numInputRows"] for progress in done) * 10
seconds = sum(progress["durationMs"]["triggerExecution"] for progress in done) / 1e3
report(words=words, seconds=seconds)
spark.stop()
