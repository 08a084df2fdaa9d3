import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.ArrayList;
import java.util.List;

/** A TCP hop between a client and the server, which a check can take down and up again. */
final class Proxy implements AutoCloseable {
    private final InetSocketAddress server;
    private final List<Socket> sockets = new ArrayList<>();
    private ServerSocket listener;
    private final int port;

    Proxy(String address) throws IOException {
        int colon = address.lastIndexOf(':');
        server = new InetSocketAddress(
            address.substring(0, colon), Integer.parseInt(address.substring(colon + 1)));
        listener = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        port = listener.getLocalPort();
        accept(listener);
    }

    String address() {
        return "127.0.0.1:" + port;
    }

    /** Cuts every connection and refuses new ones. */
    synchronized void down() throws IOException {
        listener.close();
        for (Socket socket : sockets) {
            socket.close();
        }
        sockets.clear();
    }

    synchronized void up() throws IOException {
        listener = new ServerSocket();
        listener.setReuseAddress(true);
        listener.bind(new InetSocketAddress(InetAddress.getLoopbackAddress(), port));
        accept(listener);
    }

    @Override
    public void close() throws IOException {
        down();
    }

    private void accept(ServerSocket from) {
        start(() -> {
            while (true) {
                Socket near = from.accept();
                Socket far = new Socket();
                synchronized (this) {
                    if (from.isClosed()) {
                        near.close();
                        return;
                    }
                    sockets.add(near);
                    sockets.add(far);
                }
                far.connect(server);
                near.setTcpNoDelay(true);
                far.setTcpNoDelay(true);
                start(() -> copy(near, far));
                start(() -> copy(far, near));
            }
        });
    }

    private static void copy(Socket source, Socket target) throws IOException {
        try (source; target) {
            InputStream input = source.getInputStream();
            OutputStream output = target.getOutputStream();
            byte[] chunk = new byte[65536];
            for (int count; (count = input.read(chunk)) > 0; ) {
                output.write(chunk, 0, count);
            }
        }
    }

    private interface Body {
        void run() throws IOException;
    }

    private static void start(Body body) {
        Thread thread = new Thread(() -> {
            try {
                body.run();
            } catch (IOException closed) {
                // A closed socket is how a hop ends.
            }
        });
        thread.setDaemon(true);
        thread.start();
    }
}
