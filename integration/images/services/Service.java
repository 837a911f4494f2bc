// The test service: lines in, lines out, see goservice/main.go.

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.ServerSocket;
import java.net.Socket;
import java.security.SecureRandom;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;

public class Service {
    static final String nonce = Long.toHexString(new SecureRandom().nextLong());
    static final AtomicLong ticks = new AtomicLong();
    static final ConcurrentHashMap<String, String> store = new ConcurrentHashMap<>();

    public static void main(String[] args) throws Exception {
        start(() -> {
            while (true) {
                ticks.incrementAndGet();
                Thread.sleep(5);
            }
        });
        try (ServerSocket server = new ServerSocket(7000)) {
            while (true) {
                Socket socket = server.accept();
                start(() -> serve(socket));
            }
        }
    }

    interface Body {
        void run() throws Exception;
    }

    static void start(Body body) {
        Thread thread = new Thread(() -> {
            try {
                body.run();
            } catch (Exception e) {
                System.err.println(e);
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    static void serve(Socket socket) throws IOException {
        try (socket) {
            BufferedReader in = new BufferedReader(new InputStreamReader(socket.getInputStream()));
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                socket.getOutputStream().write((answer(line) + "\n").getBytes());
            }
        }
    }

    static String answer(String line) {
        String[] words = line.split(" ", 3);
        switch (words[0]) {
            case "PUT":
                store.put(words[1], words[2]);
                return "OK";
            case "GET":
                return store.getOrDefault(words[1], "");
            case "STAT":
                return nonce + " " + ticks.get();
            default:
                return "ERR";
        }
    }
}
