// Java's own HTTP client, and with it Spring's, offers HTTP/2 with every request: `java Edit.java URL PICTURE`.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;

class Edit {
  static final HttpClient CLIENT = HttpClient.newHttpClient();

  static void post(String url, String contentType, HttpRequest.BodyPublisher body) throws Exception {
    var request = HttpRequest.newBuilder(URI.create(url)).header("Content-Type", contentType).POST(body).build();
    var response = CLIENT.send(request, BodyHandlers.ofString());
    System.out.println(response.statusCode() + " " + response.version());
    System.out.println(response.body());
  }

  public static void main(String[] arguments) throws Exception {
    var base = arguments[0];
    var picture = Files.readAllBytes(Path.of(arguments[1]));
    var text = Base64.getEncoder().encodeToString(picture);
    var fields = "\"prompt\": \"make it sunset\", \"width\": 64, \"height\": 64, \"num_inference_steps\": 1";
    var json = "{\"input\": {\"image\": \"" + text + "\", " + fields + "}}";
    post(base + "/runsync", "application/json", BodyPublishers.ofString(json));

    var edge = "----edge";
    var head = "--" + edge + "\r\nContent-Disposition: form-data; name=\"";
    var file = head + "image\"; filename=\"a.png\"\r\nContent-Type: image/png\r\n\r\n";
    var rest = "\r\n" + head + "prompt\"\r\n\r\nmake it sunset\r\n"
        + head + "size\"\r\n\r\n64x64\r\n" + head + "num_inference_steps\"\r\n\r\n1\r\n--" + edge + "--\r\n";
    var form = BodyPublishers.concat(
        BodyPublishers.ofString(file), BodyPublishers.ofByteArray(picture), BodyPublishers.ofString(rest));
    post(base + "/v1/images/edits", "multipart/form-data; boundary=" + edge, form);
  }
}
