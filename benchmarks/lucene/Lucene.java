import java.io.IOException;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.StringJoiner;
import org.apache.lucene.codecs.KnnVectorsFormat;
import org.apache.lucene.codecs.lucene99.Lucene99Codec;
import org.apache.lucene.codecs.lucene99.Lucene99HnswScalarQuantizedVectorsFormat;
import org.apache.lucene.codecs.lucene99.Lucene99HnswVectorsFormat;
import org.apache.lucene.document.Document;
import org.apache.lucene.document.Field;
import org.apache.lucene.document.KnnFloatVectorField;
import org.apache.lucene.document.StringField;
import org.apache.lucene.index.DirectoryReader;
import org.apache.lucene.index.IndexReader;
import org.apache.lucene.index.IndexWriter;
import org.apache.lucene.index.IndexWriterConfig;
import org.apache.lucene.index.LeafReaderContext;
import org.apache.lucene.index.LogDocMergePolicy;
import org.apache.lucene.index.Term;
import org.apache.lucene.index.VectorSimilarityFunction;
import org.apache.lucene.search.IndexSearcher;
import org.apache.lucene.search.KnnFloatVectorQuery;
import org.apache.lucene.search.Query;
import org.apache.lucene.search.ScoreDoc;
import org.apache.lucene.search.TermQuery;
import org.apache.lucene.search.TopDocs;
import org.apache.lucene.store.Directory;
import org.apache.lucene.store.FSDirectory;
import org.apache.lucene.util.BitSet;
import org.apache.lucene.util.BitSetIterator;
import org.apache.lucene.util.Bits;
import org.apache.lucene.util.Version;

/**
 * Indexes vectors as Atlas's search server does and searches them; see bench.py.
 *
 * <p>Arguments: a folder with vectors.f32 and queries.f32 (raw float32, little-endian), an empty
 * folder for the index, the numbers in a vector, how many vectors to index, "none" or "scalar"
 * quantization, how many hits are asked for, rounds, and numbers of candidates (0: exact).
 *
 * <p>Prints lines: "lucene VERSION java VERSION", "indexed COUNT", and for each search
 * "found CANDIDATES QUERY NANOSECONDS DOCUMENT...", best first.
 */
public final class Lucene {
  // What Atlas builds unless it is told otherwise.
  private static final int MAX_CONNECTIONS = 16;
  private static final int BEAM_WIDTH = 100;
  // Enough for all of them, so that one segment is written.
  private static final double BUFFER_MB = 1024;
  private static final int TOLD_EVERY = 1000;
  private static final long WARM_NS = 2_000_000_000L;
  private static final String VECTOR = "vector";
  // The archive asks for one model's pictures, and here all are of it.
  private static final Term MODEL = new Term("model", "it");

  public static void main(String[] arguments) throws IOException {
    Path folder = Path.of(arguments[0]);
    int dimensions = Integer.parseInt(arguments[2]);
    int count = Integer.parseInt(arguments[3]);
    boolean scalar = arguments[4].equals("scalar");
    int asked = Integer.parseInt(arguments[5]);
    int rounds = Integer.parseInt(arguments[6]);
    int[] candidates =
        Arrays.stream(arguments).skip(7).mapToInt(Integer::parseInt).toArray();
    tell("lucene " + Version.LATEST + " java " + System.getProperty("java.version"));
    float[][] queries = read(folder.resolve("queries.f32"), dimensions, Integer.MAX_VALUE);
    try (Directory directory = FSDirectory.open(Path.of(arguments[1]))) {
      index(directory, read(folder.resolve("vectors.f32"), dimensions, count), scalar);
      try (IndexReader reader = DirectoryReader.open(directory)) {
        IndexSearcher searcher = new IndexSearcher(reader);
        searcher.setQueryCache(null); // or the filter would be free the second time
        search(searcher, queries, asked, rounds, candidates);
      }
    }
  }

  private static float[][] read(Path file, int dimensions, int most) throws IOException {
    try (FileChannel channel = FileChannel.open(file)) {
      FloatBuffer numbers =
          channel
              .map(FileChannel.MapMode.READ_ONLY, 0, channel.size())
              .order(ByteOrder.LITTLE_ENDIAN)
              .asFloatBuffer();
      float[][] vectors = new float[Math.min(most, numbers.remaining() / dimensions)][dimensions];
      for (float[] vector : vectors) {
        numbers.get(vector);
      }
      return vectors;
    }
  }

  /** Writes one segment. */
  private static void index(Directory directory, float[][] vectors, boolean scalar)
      throws IOException {
    KnnVectorsFormat format =
        scalar
            ? new Lucene99HnswScalarQuantizedVectorsFormat(MAX_CONNECTIONS, BEAM_WIDTH)
            : new Lucene99HnswVectorsFormat(MAX_CONNECTIONS, BEAM_WIDTH);
    IndexWriterConfig settings = new IndexWriterConfig();
    settings.setRAMBufferSizeMB(BUFFER_MB);
    // Merges neighbours only, so that a document keeps its number.
    settings.setMergePolicy(new LogDocMergePolicy());
    settings.setCodec(
        new Lucene99Codec() {
          @Override
          public KnnVectorsFormat getKnnVectorsFormatForField(String field) {
            return format;
          }
        });
    try (IndexWriter writer = new IndexWriter(directory, settings)) {
      for (int number = 0; number < vectors.length; number++) {
        Document document = new Document();
        document.add(
            new KnnFloatVectorField(VECTOR, vectors[number], VectorSimilarityFunction.COSINE));
        document.add(new StringField(MODEL.field(), MODEL.text(), Field.Store.NO));
        writer.addDocument(document);
        if ((number + 1) % TOLD_EVERY == 0) {
          tell("indexed " + (number + 1));
        }
      }
      writer.forceMerge(1);
    }
  }

  private static void search(
      IndexSearcher searcher, float[][] queries, int asked, int rounds, int[] candidates)
      throws IOException {
    long warmUntil = System.nanoTime() + WARM_NS;
    for (int number = 0; number < queries.length || System.nanoTime() < warmUntil; number++) {
      for (int some : candidates) {
        searcher.search(query(queries[number % queries.length], asked, some), asked);
      }
    }
    for (int round = 0; round < rounds; round++) {
      for (int some : candidates) {
        StringJoiner lines = new StringJoiner("\n");
        for (int number = 0; number < queries.length; number++) {
          long began = System.nanoTime();
          TopDocs found = searcher.search(query(queries[number], asked, some), asked);
          long took = System.nanoTime() - began;
          StringBuilder line = new StringBuilder("found " + some + " " + number + " " + took);
          for (ScoreDoc hit : found.scoreDocs) {
            line.append(' ').append(hit.doc);
          }
          lines.add(line);
        }
        tell(lines.toString());
      }
    }
  }

  private static Query query(float[] vector, int asked, int candidates) {
    Query filter = new TermQuery(MODEL);
    return candidates == 0
        ? new Exact(vector, asked, filter)
        : new KnnFloatVectorQuery(VECTOR, vector, candidates, filter);
  }

  private static void tell(String lines) {
    System.out.println(lines);
    System.out.flush();
  }

  /** Compares every vector that the filter lets through, in full. */
  private static final class Exact extends KnnFloatVectorQuery {
    Exact(float[] vector, int asked, Query filter) {
      super(VECTOR, vector, asked, filter);
    }

    @Override
    protected TopDocs approximateSearch(LeafReaderContext context, Bits accepted, int visited)
        throws IOException {
      return exactSearch(context, new BitSetIterator((BitSet) accepted, visited));
    }
  }
}
