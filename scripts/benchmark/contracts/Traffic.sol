// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";

import {IJobEscrow, JobSpec, Order, Result, SignedVoucher} from "../../../contracts/src/interfaces/IJobEscrow.sol";
import {INodeRegistry} from "../../../contracts/src/interfaces/INodeRegistry.sol";
import {TypedData} from "../../../contracts/src/TypedData.sol";
import {TestToken} from "../../../contracts/test/mocks/TestToken.sol";

/// @title A contract wallet, of a requester or a node, that does what the traffic tells it and accepts every signature
contract Actor is IERC1271 {
    address private immutable TRAFFIC = msg.sender;

    receive() external payable {}

    function act(address to, uint256 value, bytes calldata data) external {
        require(msg.sender == TRAFFIC);
        (bool ok, bytes memory answer) = to.call{value: value}(data);
        if (!ok) {
            assembly ("memory-safe") {
                revert(add(answer, 0x20), mload(answer))
            }
        }
    }

    /// @inheritdoc IERC1271
    function isValidSignature(bytes32, bytes calldata) external pure override returns (bytes4) {
        return IERC1271.isValidSignature.selector;
    }
}

/// @title What goes on in a busy market, many jobs a transaction
/// @notice Warning: for measuring on private chains only; it holds nothing back from anyone.
///
/// Jobs are numbered. Everything about a job follows from its number, so that nothing need be stored: its kind from the
/// number modulo 20, what else happens beside it from the number modulo 100. A job is opened when its number comes, has its
/// result `LAG` numbers later, and, if it has a window, its payment `LAG` numbers after that. A hundred jobs are 269 events.
contract Traffic {
    uint256 public constant LAG = 450;
    uint128 private constant PRICE = 0.001 ether;
    uint256 private constant PLENTY = 1000 ether;
    uint256 private constant VOUCHERS = 10;
    /// @dev Vouchers cover small nonces only: orders that are settled alone have higher ones.
    uint64 private constant ALONE = 1 << 32;
    bytes private constant SIGNATURE = hex"01";

    IJobEscrow private immutable ESCROW;
    INodeRegistry private immutable REGISTRY;
    TestToken private immutable TOKEN;
    bytes32 private immutable SPEC_HASH;
    uint64 private immutable DEADLINE = uint64(block.timestamp + 300 days);

    Actor[] private requesters;
    Actor[] private nodes;

    constructor(IJobEscrow escrow, TestToken token) payable {
        (ESCROW, REGISTRY, TOKEN) = (escrow, INodeRegistry(escrow.registry()), token);
        JobSpec memory spec = _spec();
        SPEC_HASH = keccak256(
            abi.encode(
                TypedData.JOB_SPEC_TYPEHASH,
                keccak256(bytes(spec.inputCID)),
                keccak256(bytes(spec.operation)),
                keccak256(bytes(spec.params))
            )
        );
        token.mint(address(this), type(uint128).max);
        token.approve(address(escrow), type(uint256).max);
    }

    receive() external payable {}

    // ── Who takes part ──────────────────────────────────────────────────────────────────────────────────────────────

    function addRequesters(uint256 count) external {
        for (uint256 i = 0; i < count; ++i) {
            address requester = address(new Actor());
            requesters.push(Actor(payable(requester)));
            ESCROW.depositFor{value: PLENTY}(requester, address(0), PLENTY);
            ESCROW.depositFor(requester, address(TOKEN), PLENTY);
        }
    }

    function addNodes(uint256 count) external {
        for (uint256 i = 0; i < count; ++i) {
            Actor node = new Actor();
            nodes.push(node);
            (bool ok,) = address(node).call{value: PLENTY}("");
            require(ok);
            bytes32 id = bytes32(uint256(nodes.length));
            node.act(
                address(REGISTRY),
                PLENTY,
                abi.encodeCall(
                    INodeRegistry.register,
                    (id, abi.encodePacked(keccak256(abi.encode(node))), address(node), 16, _operations(), _uri())
                )
            );
            node.act(address(ESCROW), 0, abi.encodeCall(IJobEscrow.setSettler, (address(this), true)));
        }
    }

    // ── What they do ────────────────────────────────────────────────────────────────────────────────────────────────

    /// @notice Plays the numbers from `first` on, `count` of them.
    function play(uint256 first, uint256 count) external {
        for (uint256 i = first; i < first + count; ++i) {
            _begin(i);
            _beside(i);
        }
        if (first >= LAG) {
            _deliver(first - LAG, count);
        }
        if (first >= 2 * LAG) {
            _end(first - 2 * LAG, count);
        }
    }

    /// @notice The jobs that playing these numbers would open.
    function opened(uint256 first, uint256 count) external view returns (bytes32[] memory jobs) {
        uint256 n;
        jobs = new bytes32[](count);
        for (uint256 i = first; i < first + count; ++i) {
            if (_isOpened(i)) jobs[n++] = ESCROW.jobIdOf(_order(i));
        }
        assembly ("memory-safe") {
            mstore(jobs, n)
        }
    }

    /// @dev 14 of 20 kinds are opened on-chain; 5 are signed orders, of which the chain hears with the result; the last is no
    /// job but a node's batch of vouchers.
    function _begin(uint256 i) private {
        if (_isOpened(i)) {
            _requester(i).act(address(ESCROW), 0, abi.encodeCall(IJobEscrow.openJob, (_order(i), _spec())));
        } else if (i % 20 == 19) {
            _redeem(i);
        }
    }

    function _isOpened(uint256 i) private pure returns (bool) {
        return i % 20 < 13 || i % 20 == 18;
    }

    function _deliver(uint256 first, uint256 count) private {
        uint256 due;
        for (uint256 j = first; j < first + count; ++j) {
            if (j % 20 < 18) ++due;
        }
        Result[] memory results = new Result[](due);
        for (uint256 j = first + count; j > first;) {
            --j;
            if (j % 20 < 18) {
                Order memory order = _order(j);
                bytes memory signature = j % 20 < 13 ? bytes("") : SIGNATURE;
                results[--due] =
                    Result(order, order.node, 0, PRICE - 1, keccak256(abi.encode(j)), "", SIGNATURE, signature);
            }
            if (j % 20 == 18) {
                _requester(j).act(address(ESCROW), 0, abi.encodeCall(IJobEscrow.cancelJob, (_order(j))));
            }
            if (j % 100 == 7) {
                Actor requester = _requester(j);
                requester.act(address(ESCROW), 0, abi.encodeCall(IJobEscrow.withdraw, (_token(j), address(requester))));
            }
        }
        ESCROW.submitResults(results);
    }

    function _end(uint256 first, uint256 count) private {
        for (uint256 j = first; j < first + count; ++j) {
            Order[] memory one = new Order[](1);
            one[0] = _order(j);
            uint256 kind = j % 20;
            // Job 77 of each hundred is a signed order that was paid long ago: this is refused.
            if ((kind >= 9 && kind < 13) || j % 100 == 77) ESCROW.finalize(one);
            else if (kind == 18) ESCROW.refundExpired(one);
        }
    }

    function _redeem(uint256 i) private {
        address node = address(_node(i));
        address token = _token(i);
        SignedVoucher[] memory vouchers = new SignedVoucher[](VOUCHERS);
        for (uint256 n = 0; n < VOUCHERS; ++n) {
            address requester = address(_requester(i + n));
            (uint256 claimed,) = ESCROW.channel(requester, node, token);
            vouchers[n] = SignedVoucher({
                requester: requester,
                // forge-lint: disable-next-line(unsafe-typecast)
                cumulative: uint128(claimed) + PRICE, // a channel's amounts have 96 bits
                // forge-lint: disable-next-line(unsafe-typecast)
                coveredNonce: uint64(i), // far less than 2^32 jobs are played
                signature: SIGNATURE,
                settledAbove: new Order[](0)
            });
        }
        ESCROW.redeemSigned(node, token, vouchers);
    }

    function _beside(uint256 i) private {
        address requester = address(_requester(i));
        address token = _token(i);
        if (i % 4 == 0) {
            ESCROW.depositFor{value: token == address(0) ? PRICE : 0}(requester, token, PRICE);
        }
        uint256 n = i % 100;
        if (n == 7) {
            _requester(i).act(address(ESCROW), 0, abi.encodeCall(IJobEscrow.thaw, (token, PRICE)));
        } else if (n == 17) {
            bytes memory call = abi.encodeCall(IJobEscrow.reserve, (address(_node(i)), token, PRICE));
            _requester(i).act(address(ESCROW), 0, call);
        } else if (n == 27) {
            // forge-lint: disable-next-line(unsafe-typecast)
            address key = address(uint160(uint256(keccak256(abi.encode(i)))));
            bytes memory call = abi.encodeCall(IJobEscrow.authorizeSession, (key, token, PRICE, DEADLINE));
            _requester(i).act(address(ESCROW), 0, call);
        } else if (n % 10 == 7) {
            _besideNode(i, n, token);
        }
    }

    function _besideNode(uint256 i, uint256 n, address token) private {
        Actor node = _node(i);
        if (n == 37) {
            bytes memory key = abi.encodePacked(keccak256(abi.encode(i)));
            bytes memory call = abi.encodeCall(INodeRegistry.update, (key, address(node), 16, _operations(), _uri()));
            node.act(address(REGISTRY), 0, call);
        } else if (n == 47) {
            REGISTRY.stake{value: PRICE}(address(node));
        } else if (n == 57) {
            bytes memory call = abi.encodeCall(IJobEscrow.setSettler, (address(_requester(i)), i % 200 < 100));
            node.act(address(ESCROW), 0, call);
        } else if (n == 67 && ESCROW.earned(address(node), token) != 0) {
            node.act(address(ESCROW), 0, abi.encodeCall(IJobEscrow.withdrawEarned, (token, address(node))));
        }
    }

    // ── What follows from a number ──────────────────────────────────────────────────────────────────────────────────

    function _order(uint256 i) private view returns (Order memory order) {
        uint256 kind = i % 20;
        order.requester = address(_requester(i));
        order.token = _token(i);
        order.maxPrice = PRICE;
        order.node = address(_node(i));
        order.specHash = SPEC_HASH;
        order.deadline = DEADLINE;
        if (kind >= 9 && kind < 13) order.challengeWindow = 1;
        if (kind == 12) (order.arbiter, order.maxFeeBps) = (address(this), 100);
        // forge-lint: disable-next-line(unsafe-typecast)
        order.nonce = ALONE + uint64(i);
    }

    function _requester(uint256 i) private view returns (Actor) {
        return requesters[i % requesters.length];
    }

    function _node(uint256 i) private view returns (Actor) {
        return nodes[i % nodes.length];
    }

    function _token(uint256 i) private view returns (address) {
        return i % 5 == 3 ? address(TOKEN) : address(0);
    }

    function _spec() private pure returns (JobSpec memory) {
        return JobSpec({
            inputCID: "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
            operation: "encrypt",
            params: '{"to":"0x2fe57da347cd62431528daac5fbb290730fff684afc4cfc2ed90995f58cb3b74","chunk":65536,"compress":true}'
        });
    }

    function _operations() private pure returns (string[] memory operations) {
        operations = new string[](3);
        (operations[0], operations[1], operations[2]) = ("encrypt", "transcode", "thumbnail");
    }

    function _uri() private pure returns (string memory) {
        return "https://node.example.org/littoral";
    }
}
