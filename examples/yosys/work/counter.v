// An 8-bit counter with enable and synchronous reset.
module counter (
    input  wire       clk,
    input  wire       reset,
    input  wire       enable,
    output reg  [7:0] count
);
    always @(posedge clk)
        if (reset)
            count <= 8'd0;
        else if (enable)
            count <= count + 8'd1;
endmodule
